"""Counts the threads that this process may keep busy."""

import os
from pathlib import Path

from hybrid.errors import UsageError
from hybrid.machine.cgroups import read_limits
from offload.spec.units import counted


def default_threads(root: Path = Path("/")) -> int:
    """Physical cores within this process's affinity and its control groups' quota, at least one.

    `root` is where proc and sys are.
    """
    cores = {_siblings(root, cpu) for cpu in os.sched_getaffinity(0)}
    quota = read_limits(root).cpus
    return max(1, len(cores) if quota is None else min(len(cores), int(quota)))


def _siblings(root: Path, cpu: int) -> str:
    """The hardware threads of this CPU's core, as the kernel writes them; the CPU itself where it does not."""
    try:
        return (root / f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list").read_text().strip()
    except OSError:
        return str(cpu)


def resolve_threads(asked: int | None) -> int:
    """The threads of `--threads`, at most as many as the CPUs that may run them; by default one for each core.

    Raises UsageError.
    """
    if asked is None:
        return default_threads()
    if asked < 1:
        raise UsageError(f"--threads {asked}: must be 1 or more")
    return min(asked, len(os.sched_getaffinity(0)))


def threads_warning(asked: int | None) -> tuple[str, ...]:
    """A line where more threads are asked for than there are CPUs to run them."""
    cpus = len(os.sched_getaffinity(0))
    if asked is None or asked <= cpus:
        return ()
    may_use = "one CPU, and it uses one thread" if cpus == 1 else f"{counted(cpus, 'CPU')}, and it uses as many threads"
    return (f"--threads {asked}: this process may use {may_use}; more would wait for each other",)
