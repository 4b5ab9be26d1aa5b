"""RAM that this process can have."""

from dataclasses import dataclass
from pathlib import Path

from hybrid.runtime.cgroups import Limits


@dataclass(frozen=True)
class Ram:
    """RAM that this process can have in all and now, its control group's limit included."""

    total_bytes: int
    available_bytes: int


def read_ram(limits: Limits, root: Path = Path("/")) -> Ram | None:
    """What /proc/meminfo says, within the limits; None where it cannot be read."""
    try:
        lines = (root / "proc" / "meminfo").read_text().splitlines()
        sizes = {key: int(value.split()[0]) * 1024 for key, _, value in (line.partition(":") for line in lines)}
        total, available = sizes["MemTotal"], sizes["MemAvailable"]
    except (OSError, ValueError, LookupError):
        return None
    limit = total if limits.memory_bytes is None else limits.memory_bytes
    return Ram(min(total, limit), min(available, limit))
