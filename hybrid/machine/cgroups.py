"""The limits that a container or a service manager sets for this process: control groups of version 1 and 2."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

_NO_LIMIT = 1 << 60  # version 1 writes a huge number where there is none


@dataclass(frozen=True)
class CgroupLimits:
    """The most that this process may use; None without a limit."""

    cpus: float | None
    memory_bytes: int | None


def read_limits(root: Path = Path("/")) -> CgroupLimits:
    """The tightest limits of this process's group and of those around it. `root` is where proc and sys are."""
    cpus = [*_each(root, "", _quota_v2), *_each(root, "cpu", _quota_v1)]
    memory = [*_each(root, "", _memory_v2), *_each(root, "memory", _memory_v1)]
    return CgroupLimits(min(cpus, default=None), min((int(limit) for limit in memory), default=None))


def _each(root: Path, controller: str, read: Callable[[Path], float | None]) -> Iterator[float]:
    """Yield what `read` finds in the folders of the process's group; the empty controller is version 2."""
    for folder in _folders(root, controller):
        try:
            limit = read(folder)
        except (OSError, ValueError, ZeroDivisionError):
            continue
        if limit is not None:
            yield limit


def _folders(root: Path, controller: str) -> Iterator[Path]:
    """The group's folder and its parents' up to the mount. A container often sees only its own, as the mount."""
    mount = root / "sys" / "fs" / "cgroup" / controller
    folder = mount / _group(root, controller).lstrip("/")
    while mount in folder.parents:
        yield folder
        folder = folder.parent
    yield mount


def _group(root: Path, controller: str) -> str:
    """The path of this process's group, from a line "number:controllers:path"."""
    try:
        lines = (root / "proc" / "self" / "cgroup").read_text().splitlines()
    except OSError:
        return ""
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controller in controllers.split(",") and ".." not in path:
            return path
    return ""


def _quota_v2(folder: Path) -> float | None:
    quota, period = (folder / "cpu.max").read_text().split()
    return None if quota == "max" else int(quota) / int(period)


def _quota_v1(folder: Path) -> float | None:
    quota = int((folder / "cpu.cfs_quota_us").read_text())
    return quota / int((folder / "cpu.cfs_period_us").read_text()) if quota > 0 else None


def _memory_v2(folder: Path) -> float | None:
    text = (folder / "memory.max").read_text().strip()
    return None if text == "max" else int(text)


def _memory_v1(folder: Path) -> float | None:
    limit = int((folder / "memory.limit_in_bytes").read_text())
    return None if limit >= _NO_LIMIT else limit
