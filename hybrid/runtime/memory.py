"""RAM and VRAM of this process."""

import resource
import sys
from pathlib import Path
from time import monotonic

from offload.recovery import ShrinkingPlan

_SAMPLE_S = 0.02
_STATUS = Path("/proc/self/status")


class MemoryWatch:
    """What this process takes, and the most it has taken; Linux only, elsewhere only the peak of all RAM is known.

    The peaks of the two kinds of RAM are those of the moments when `sample` was called; the peak of both together
    is the kernel's own.
    """

    def __init__(self) -> None:
        self._peaks = {"RssAnon": 0, "RssFile": 0}
        self._next_s = 0.0

    def sample(self) -> None:
        """Take note of the RAM in use, unless that has just been done."""
        if monotonic() >= self._next_s:
            self._update(_status())
            self._next_s = monotonic() + _SAMPLE_S

    def read(self, plans: ShrinkingPlan) -> dict[str, int]:
        """Bytes by name. RAM counts mapped files too; VRAM is what plans have allocated, all of it at load.

        `ram_cap_bytes` is there when --ram set it.
        """
        status = _status()
        self._update(status)
        plan = plans.plan
        cap = {"ram_cap_bytes": plan.ram_budget_bytes} if plan.ram_is_asked and plan.ram_budget_bytes else {}
        return {
            "vram_budget_bytes": plans.budget_bytes,
            "vram_peak_bytes": plans.peak_vram_bytes,
            "ram_bytes": status.get("VmRSS", 0),
            "ram_anonymous_bytes": status.get("RssAnon", 0),
            "ram_peak_bytes": status.get("VmHWM") or _peak_bytes(),
            "ram_anonymous_peak_bytes": self._peaks["RssAnon"],
            "ram_file_peak_bytes": self._peaks["RssFile"],
            **cap,
        }

    def _update(self, status: dict[str, int]) -> None:
        for field, peak in self._peaks.items():
            self._peaks[field] = max(peak, status.get(field, 0))


def _status() -> dict[str, int]:
    """The sizes in /proc/self/status, in bytes; nothing where there is none."""
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:
        return {}
    sizes = (line.partition(":") for line in lines if line.endswith(" kB"))
    return {field: int(value.split()[0]) * 1024 for field, _, value in sizes}


def _peak_bytes() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
