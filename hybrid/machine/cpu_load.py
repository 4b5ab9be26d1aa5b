"""Measures the load of other processes on the CPUs that this one may run on, as the kernel counts it in /proc."""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hybrid.shown import show
from offload.spec.units import counted

_PROC = Path("/proc")
_FEWEST_S = 0.2  # the kernel counts in hundredths of a second
_LOOK_S = 0.5
_IDLE = slice(3, 5)  # idle and iowait, among user, nice, system, idle, iowait, irq, softirq, steal
_COUNTED = slice(0, 8)  # guests count as user too
_NAMED = 3


@dataclass(frozen=True)
class CpuTimes:
    """CPU time until now, in seconds: of everybody on the CPUs that this process may use, and of this process."""

    at_s: float
    cpus: int
    busy_s: float
    own_s: float


@dataclass(frozen=True)
class OthersLoad:
    """The number of `cpus` CPUs that other processes kept busy, a mean, and who they were where that was looked at."""

    busy_cpus: float
    cpus: int
    names: tuple[str, ...] = ()

    @property
    def is_heavy(self) -> bool:
        """Tell whether measurements or runs meanwhile are slower for it."""
        return self.busy_cpus > max(0.25, 0.1 * self.cpus)

    def __str__(self) -> str:
        these = "this CPU" if self.cpus == 1 else f"these {counted(self.cpus, 'CPU')}"
        who = f" ({', '.join(self.names)})" if self.names else ""
        return f"other processes keep {min(self.busy_cpus, self.cpus):.1f} of {these} busy{who}"


def cpu_times(proc: Path = _PROC) -> CpuTimes | None:
    """CPU times now; None where the kernel does not tell them."""
    allowed = {f"cpu{number}" for number in os.sched_getaffinity(0)}
    tick_s, busy, cpus = 1 / os.sysconf("SC_CLK_TCK"), 0, 0
    try:
        for line in (proc / "stat").read_text().splitlines():
            name, *fields = line.split()
            if name in allowed:
                counts = [int(field) for field in fields[_COUNTED]]
                busy += sum(counts) - sum(counts[_IDLE])
                cpus += 1
    except (OSError, ValueError):
        return None
    own = os.times()
    return CpuTimes(time.monotonic(), cpus, busy * tick_s, own.user + own.system) if cpus else None


def others_load(before: CpuTimes | None, after: CpuTimes | None) -> OthersLoad | None:
    """Measure the load of others between two moments; None where that is too short or not known."""
    if before is None or after is None or after.at_s - before.at_s < _FEWEST_S or before.cpus != after.cpus:
        return None
    others_s = (after.busy_s - before.busy_s) - (after.own_s - before.own_s)
    return OthersLoad(max(0.0, others_s / (after.at_s - before.at_s)), after.cpus)


def look_at_others(wait: Callable[[float], None] = time.sleep) -> OthersLoad | None:
    """Measure the load of others right now, for half a second, with the names of those that take the most."""
    before, processes = cpu_times(), _process_ticks(_PROC)
    wait(_LOOK_S)
    load = others_load(before, cpu_times())
    if load is None:
        return None
    now = _process_ticks(_PROC)
    took = {key: ticks - processes.get(key, ticks) for key, ticks in now.items() if key[0] != os.getpid()}
    most = sorted(took.items(), key=lambda item: -item[1])[:_NAMED]
    least = 0.1 * _LOOK_S * os.sysconf("SC_CLK_TCK")
    names = tuple(f"{show(name)} {number}" for (number, name), ticks in most if ticks > least)
    return OthersLoad(load.busy_cpus, load.cpus, names)


def _process_ticks(proc: Path) -> dict[tuple[int, str], int]:
    """CPU time of every process that can be seen, by number and name."""
    found = {}
    for folder in proc.glob("[0-9]*"):
        try:
            text = (folder / "stat").read_text(errors="replace")
            name, fields = text[text.index("(") + 1 : text.rindex(")")], text[text.rindex(")") + 2 :].split()
            found[int(folder.name), name] = int(fields[11]) + int(fields[12])  # utime and stime
        except (OSError, ValueError, IndexError):  # it has ended meanwhile
            continue
    return found
