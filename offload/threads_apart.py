"""The threads of a pool, kept on CPUs of their own (Linux; elsewhere nothing is done).

They spin while they wait for each other. Where another program has one of two CPUs, the kernel thinks it fair to have
two of them share the other one, and then every launch takes time slices of milliseconds instead of microseconds.
"""

import os
from collections.abc import Callable
from math import inf
from pathlib import Path
from threading import get_native_id
from time import perf_counter

_TASKS = Path("/proc/self/task")
_PERIOD_S = 0.05  # looking takes some 10 µs a thread
_PROCESSOR = 36  # the field of proc_pid_stat(5), counted from the one behind the name


class ThreadsApart:
    """Looks now and then, and moves threads that share a CPU; they may go where they like afterwards."""

    def __init__(self) -> None:
        self._threads: tuple[int, ...] = ()
        self._next_s = inf

    def learn(self, start: Callable[[], None]) -> None:
        """Take note of the threads that `start` starts, and of this one. A pool that runs already stays unknown."""
        before = _thread_ids()
        start()
        new = _thread_ids() - before
        if new and hasattr(os, "sched_setaffinity"):
            self._threads = (get_native_id(), *sorted(new))
            self._next_s = 0.0

    def look(self) -> None:
        """Move threads apart, if the last look is some time ago."""
        now_s = perf_counter()
        if now_s < self._next_s:
            return
        self._next_s = now_s + _PERIOD_S
        try:
            self._move()
        except OSError:  # a thread has ended, or this process may not: then it stays as it is
            self._next_s = inf

    def _move(self) -> None:
        used: set[int] = set()
        for thread in self._threads:
            cpu = cpu_of(thread)
            if cpu in used:
                allowed = os.sched_getaffinity(thread)
                if free := allowed - used - {cpu_of(other) for other in self._threads}:
                    cpu = min(free)
                    os.sched_setaffinity(thread, {cpu})
                    os.sched_setaffinity(thread, allowed)
            used.add(cpu)


def cpu_of(thread: int) -> int:
    """The CPU that a thread of this process ran on last. Raises OSError where there is no such thread."""
    return int((_TASKS / str(thread) / "stat").read_text().rpartition(")")[2].split()[_PROCESSOR])


def _thread_ids() -> set[int]:
    try:
        return {int(entry.name) for entry in _TASKS.iterdir()}
    except OSError:
        return set()
