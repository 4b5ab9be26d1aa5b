"""How many threads this process may keep busy."""

import os
from pathlib import Path

from hybrid.runtime.cgroups import read_limits


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


def threads_warning(threads: int) -> tuple[str, ...]:
    """A line where there are more threads than CPUs to run them."""
    cpus = len(os.sched_getaffinity(0))
    if threads <= cpus:
        return ()
    may_use = "one CPU" if cpus == 1 else f"{cpus} CPUs"
    return (f"--threads {threads}: this process may use {may_use}, so threads wait for each other; fewer are faster",)
