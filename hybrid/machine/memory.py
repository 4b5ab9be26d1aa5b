"""RAM and VRAM of this process."""

import resource
import sys
from contextlib import suppress
from pathlib import Path
from time import monotonic
from typing import TypedDict

from offload.devices.cuda.vram_meter import VramMeter
from offload.errors import OffloadError
from offload.run.recovery import Replanner

_SAMPLE_S = 0.02
_STATUS = Path("/proc/self/status")


class MemoryUse(TypedDict, total=False):
    """Bytes in use and at the peak, by name.

    `vram_peak_source` says who measured VRAM, as `VramSource` has it; it is "plan" where nothing could be measured, and
    "modelled" for a simulated device, which takes what the plan says. RAM counts mapped files too; `ram_cap_bytes` is
    there when --ram set it.
    """

    vram_budget_bytes: int
    vram_planned_bytes: int
    vram_bytes: int
    vram_peak_bytes: int
    vram_peak_source: str
    ram_bytes: int
    ram_anonymous_bytes: int
    ram_peak_bytes: int
    ram_anonymous_peak_bytes: int
    ram_file_peak_bytes: int
    ram_cap_bytes: int


class MemoryWatch:
    """Watches what this process takes, and the most of it; Linux only, elsewhere only the peak of all RAM is known.

    The peaks of the two kinds of RAM are those of the moments when `sample` was called; the peak of both together
    is the kernel's own.
    """

    def __init__(self, vram: VramMeter | None = None) -> None:
        """`vram` measures the device; without it, VRAM is what the plans take."""
        self._vram = vram
        self._peaks = {"RssAnon": 0, "RssFile": 0}
        self._next_s = 0.0

    def sample(self) -> None:
        """Take note of the RAM in use, unless that has just been done."""
        if monotonic() >= self._next_s:
            self._update(_status())
            self._next_s = monotonic() + _SAMPLE_S

    def read(self, replanner: Replanner, modelled: bool = False) -> MemoryUse:
        """Read the memory in use; `modelled` where the plan is for a simulated device."""
        status = _status()
        self._update(status)
        plan = replanner.plan
        use = MemoryUse(
            vram_budget_bytes=replanner.budget_bytes,
            vram_planned_bytes=replanner.peak_vram_bytes,
            vram_bytes=plan.total_vram_bytes,
            vram_peak_bytes=replanner.peak_vram_bytes,
            vram_peak_source="modelled" if modelled else "plan",
            ram_bytes=status.get("VmRSS", 0),
            ram_anonymous_bytes=status.get("RssAnon", 0),
            ram_peak_bytes=status.get("VmHWM") or _peak_bytes(),
            ram_anonymous_peak_bytes=self._peaks["RssAnon"],
            ram_file_peak_bytes=self._peaks["RssFile"],
        )
        if plan.ram_is_asked and plan.ram_budget_bytes:
            use["ram_cap_bytes"] = plan.ram_budget_bytes
        if (vram := self._vram) is not None:
            with suppress(OffloadError):  # a lost device: what was read before stands
                vram.used_bytes()
            use |= {
                "vram_bytes": vram.last_bytes,
                "vram_peak_bytes": vram.peak_bytes,
                "vram_peak_source": str(vram.source),
            }
        return use

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
