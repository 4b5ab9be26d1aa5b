"""RAM that this process can have."""

from dataclasses import dataclass
from pathlib import Path

from hybrid.errors import UsageError
from hybrid.machine.cgroups import CgroupLimits
from offload.machine.budget import Budget
from offload.spec.units import format_bytes

_MOST_SHARE = 0.8  # of what is available, when nothing was asked for; the rest is for other programs


@dataclass(frozen=True)
class Ram:
    """RAM that this process can have in all and now, its control group's limit included."""

    total_bytes: int
    available_bytes: int


@dataclass(frozen=True)
class RamBudget:
    """The most this process is to take. One that was not asked for is exceeded rather than an error."""

    nbytes: int
    asked: bool
    note: str = ""  # one line for people when it is not what was asked for
    most_bytes: int = 0  # what it is when nothing is asked for: more should not be; 0: not known


def resolve_ram(budget: Budget, ram: Ram | None) -> RamBudget | None:
    """The cap that `--ram` sets, or without it most of what is available; None where that is not known.

    Raises UsageError for a share where RAM cannot be measured.
    """
    if ram is None:
        if budget.share is not None:
            raise UsageError(f"--ram {100 * budget.share:g}%: how much RAM there is cannot be read here; give a size")
        return None if budget.nbytes is None else RamBudget(budget.nbytes, asked=True)
    most_bytes = int(_MOST_SHARE * ram.available_bytes)
    if budget.nbytes is None and budget.share is None:
        return RamBudget(most_bytes, asked=False, most_bytes=most_bytes)
    nbytes = budget.nbytes if budget.nbytes is not None else int((budget.share or 0) * ram.total_bytes)
    if nbytes <= ram.available_bytes:
        return RamBudget(nbytes, asked=True, most_bytes=most_bytes)
    return RamBudget(
        ram.available_bytes,
        asked=True,
        note=f"asked for {format_bytes(nbytes)} of RAM, {format_bytes(ram.available_bytes)} of "
        f"{format_bytes(ram.total_bytes)} are available: the cap is {format_bytes(ram.available_bytes)}",
        most_bytes=most_bytes,
    )


def read_ram(limits: CgroupLimits, root: Path = Path("/")) -> Ram | None:
    """Read /proc/meminfo, within the limits; None where it cannot be read."""
    try:
        lines = (root / "proc" / "meminfo").read_text().splitlines()
        sizes = {key: int(value.split()[0]) * 1024 for key, _, value in (line.partition(":") for line in lines)}
        total, available = sizes["MemTotal"], sizes["MemAvailable"]
    except (OSError, ValueError, LookupError):
        return None
    limit = total if limits.memory_bytes is None else limits.memory_bytes
    return Ram(min(total, limit), min(available, limit))
