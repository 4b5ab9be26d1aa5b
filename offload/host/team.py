"""The threads that multiply and attend on the CPU: started once, kept for the process, used by whoever calls `run`.

`kernels/team.py` has what they do, and how they get along with other programs on the same CPUs.
"""

import atexit
import ctypes
import os
import threading
from dataclasses import dataclass

import numpy as np

from offload.host.kernels import compiled
from offload.host.kernels import team as words

PIECES = 4  # that a job is cut into for each thread: a late thread takes fewer
_MOST_UNITS = 24  # of a piece that meets one row of x: its thread may be late by all of it


@dataclass(frozen=True)
class Waiting:
    """The way threads wait for each other, in nanoseconds.

    Helpers look for the next job for `spin_ns`, or `short_spin_ns` while other programs want our CPUs, and then sleep.
    A thread that is later than `patience_ns`, or the time of two pieces where that is more, is taken to have lost its
    CPU. Other programs are taken to be gone `calm_ns` after that has last happened. Without `moves` threads are left
    where they are, and sleep at once while they wait for late ones.
    """

    spin_ns: int
    short_spin_ns: int
    patience_ns: int
    calm_ns: int
    moves: bool


# Between the jobs of a decode step pass tens of microseconds, now and then some hundred. Moving a thread and going to
# sleep takes 20 to 50 µs.
_OURS = Waiting(spin_ns=2_000_000, short_spin_ns=200_000, patience_ns=100_000, calm_ns=100_000_000, moves=True)
PASSIVE = Waiting(spin_ns=0, short_spin_ns=0, patience_ns=0, calm_ns=0, moves=False)


def piece_units(units: int, threads: int, rows: int, multiple: int) -> int:
    """Count the units of columns in a piece: some multiple, the fewer the more `rows` of x they meet."""
    most = max(1, _MOST_UNITS // (multiple * rows))
    return max(1, min(-(-units // (PIECES * threads * multiple)), most)) * multiple


class Team:
    """Threads of this process that take pieces of one job at a time."""

    def __init__(self) -> None:
        """Compiles what they run, half a second unless cached."""
        libc = self._libc = ctypes.CDLL(None)
        size = words.HELPERS + (1 + words.MOST_THREADS) * words.LINE
        self._memory = np.zeros(size + 8, np.int64)
        skipped = -self._memory.ctypes.data % 64 // 8
        self._words = self._memory[skipped : skipped + size]
        self._set_allowed()
        for word, name in (
            (words.SYSCALL, "syscall"),
            (words.GETTID, "gettid"),
            (words.GETCPU, "sched_getcpu"),
            (words.SET_AFFINITY, "sched_setaffinity"),
            (words.CLOCK, "clock_gettime"),
        ):
            self._words[word] = ctypes.cast(libc[name], ctypes.c_void_p).value or 0
        self.wait_like(_OURS)
        self._address = int(self._words.ctypes.data)
        self._run = compiled.launcher()
        self._help = ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_int64)(compiled.kernel_address(words.help_out))
        self._helpers: list[threading.Thread] = []
        self._growing = threading.Lock()

    @property
    def threads(self) -> int:
        """Count the threads, the caller's included."""
        return 1 + len(self._helpers)

    @property
    def native_ids(self) -> tuple[int | None, ...]:
        """The kernel's numbers of the threads; the first is the caller's."""
        return threading.get_native_id(), *(helper.native_id for helper in self._helpers)

    @property
    def rescues(self) -> int:
        """Count how often a helper was given an owner's CPU, having lost its own in the middle of a piece."""
        return int(self._words[words.RESCUES])

    @property
    def owner_rescues(self) -> int:
        """Count how often an owner changed places with a helper, having lost its CPU in the middle of a piece."""
        return int(self._words[words.OWNER_RESCUES])

    def grow(self, threads: int) -> int:
        """Start helpers until there are so many threads, the caller's included; gives how many of them there are."""
        with self._growing:
            while self.threads < min(threads, words.MOST_THREADS):
                number = self.threads
                arguments = self._address, number
                helper = threading.Thread(target=self._help, args=arguments, name=f"team {number}", daemon=True)
                helper.start()
                self._helpers.append(helper)
            return min(threads, self.threads)

    def wait_like(self, waiting: Waiting) -> None:
        """Have the threads wait so from the next job on."""
        for word, value in (
            (words.SPIN_NS, waiting.spin_ns),
            (words.SHORT_SPIN_NS, waiting.short_spin_ns),
            (words.PATIENCE_NS, waiting.patience_ns),
            (words.CALM_NS, waiting.calm_ns),
            (words.MOVES, waiting.moves),
        ):
            self._words[word] = value

    def run(self, job: int, task: tuple[int, ...], threads: int, pieces: int) -> None:
        """Do so many pieces of a job, on so many threads, this one among them; returns when all are done.

        `job` is the address of a function that takes the words of `task` (1 or 3), the number of its thread, and the
        address of two words: the next piece, and how many there are. Callers in several threads wait for each other.
        """
        if len(task) == 1:
            self._run(self._address, job, 1, task[0], 0, 0, threads, pieces)
        else:
            self._run(self._address, job, 3, *task, threads, pieces)

    def stop(self) -> None:
        """End the helpers' threads."""
        self._words[words.STOP] = 1
        self._words[words.WAKE] = -1
        sleepers = ctypes.c_void_p(self._address + 8 * words.WAKE)
        self._libc.syscall(words.FUTEX, sleepers, words.FUTEX_WAKE, words.EVERYBODY, None, None, 0)
        for helper in self._helpers:
            helper.join()

    def _set_allowed(self) -> None:
        cpus = sorted(os.sched_getaffinity(0))
        allowed = sum(1 << cpu for cpu in cpus).to_bytes(-(-(cpus[-1] + 1) // 64) * 8, "little")
        self._allowed = np.frombuffer(allowed, np.uint8)
        self._words[words.ALLOWED], self._words[words.ALLOWED_BYTES] = self._allowed.ctypes.data, len(allowed)
        self._words[words.ALLOWED_CPUS] = min(len(cpus), words.MOST_THREADS)
        self._words[words.CPU_LIST : words.CPU_LIST + min(len(cpus), words.MOST_THREADS)] = cpus[: words.MOST_THREADS]


class _Shared:
    """The process's team, made when first asked for; a child of the process begins without one, as without threads."""

    def __init__(self) -> None:
        self._team: Team | None = None
        self._making = threading.Lock()
        os.register_at_fork(after_in_child=self._forget)

    def __call__(self) -> Team:
        with self._making:
            team = self._team
            if team is None:
                team = self._team = Team()
                atexit.register(team.stop)
            return team

    def _forget(self) -> None:
        self._team, self._making = None, threading.Lock()


shared_team = _Shared()
