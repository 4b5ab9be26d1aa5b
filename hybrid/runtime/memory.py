"""RAM and VRAM of this process."""

import resource
from pathlib import Path

from offload.recovery import ShrinkingPlan


def read_memory(plans: ShrinkingPlan) -> dict[str, int]:
    """Bytes by name. RAM counts mapped weight files too; VRAM is what plans have allocated, all of it at load."""
    return {
        "vram_budget_bytes": plans.budget_bytes,
        "vram_peak_bytes": plans.peak_vram_bytes,
        "ram_bytes": _status_bytes("VmRSS"),
        "ram_anonymous_bytes": _status_bytes("RssAnon"),
        "ram_peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def _status_bytes(field: str) -> int:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:")), 0)
