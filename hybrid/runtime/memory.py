"""RAM and VRAM of this process, as the system counts them."""

import resource
from pathlib import Path


class MemoryWatch:
    """Reads what a run has taken so far."""

    def __init__(self, vram_planned_bytes: int, vram_budget_bytes: int) -> None:
        self._vram_planned_bytes = vram_planned_bytes
        self._vram_budget_bytes = vram_budget_bytes

    def read(self) -> dict[str, int]:
        """Bytes by name. RAM counts mapped weight files too; VRAM is what the plan has allocated."""
        return {
            "vram_planned_bytes": self._vram_planned_bytes,
            "vram_budget_bytes": self._vram_budget_bytes,
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
