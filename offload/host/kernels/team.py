"""Loops of a team's threads: wait for a job, take pieces of it until there are none, and help each other out.

A team is a table of int64 words. One thread at a time owns it: it opens a job, takes pieces as everybody does, closes
the job, and waits for those who are still inside. Nobody waits for a thread that has not come yet: who comes late finds
fewer pieces, or a closed job.

A thread may lose its CPU to another program in the middle of a piece, for milliseconds, when all others have long
finished. Whoever then waits longest gives up its own CPU: it moves the late thread there, and sleeps until that has
finished. The two meet again when both have a CPU of their own.
"""

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import int64, types

from offload.host.kernels.intrinsics import I64, c_call, call, helper, intrinsic

# Words of a team; those that different threads write lie on cache lines of their own.
STATE = 0  # generation << 16 | OPEN | number of helpers inside
JOB, WORDS_OF_TASK, TASK, FIRST, SECOND, THREADS, OWNER = range(16, 23)
OPENED_NS, OWNER_CPU = 26, 27
WAKE, SLEEPERS = 24, 25  # helpers sleep on the first
OWNER_SLEEPS = 32  # the owner sleeps on it while it is 1
BUSY = 40  # 0, 1 while a thread owns the team, 2 while others may wait for that
CONTENDED_NS = 48  # until when other programs are taken to want our CPUs
STOP, SPIN_NS, SHORT_SPIN_NS, PATIENCE_NS, CALM_NS, RESCUES, OWNER_RESCUES, MOVES = range(56, 64)
SYSCALL, GETTID, GETCPU, SET_AFFINITY, CLOCK = range(64, 69)  # functions of libc
ALLOWED, ALLOWED_BYTES, ALLOWED_CPUS = range(72, 75)  # where this process may run: a set, its size, and how many
CPU_LIST = 80  # the first MOST_THREADS of these
MOST_THREADS = 256
COUNT = CPU_LIST + MOST_THREADS  # of pieces; and of threads that take them
RANGES = COUNT + 8  # for each thread: the next piece of its own, and the end of those
HELPERS = RANGES + 8 * MOST_THREADS  # a line for the owner, and one for each helper
LINE = 32  # words a line: INSIDE, ID, PINNED, then scratch for a clock and a set of CPUs
INSIDE, ID, PINNED, TIME, CPUS = 0, 1, 2, 4, 8
CPU_WORDS = 16  # of a set of CPUs, as sched_setaffinity(2) takes it

OPEN, ACTIVE = 1 << 15, (1 << 15) - 1
FUTEX, _FUTEX_WAIT, FUTEX_WAKE = 202, 128, 129  # of x86-64; private to this process
EVERYBODY = 1 << 30
_MONOTONIC = 1
_PAUSES = 16  # between two looks at the clock


@intrinsic
def ask(typing: Any, function: Any, args: Any) -> Any:
    """Call a function of libc as `call` does; gives its result, an int."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return builder.sext(c_call(builder, ir.IntType(32), values, len(args)), I64)

    return int64(int64, types.UniTuple(int64, len(args))), generate


@intrinsic
def table(typing: Any, address: Any) -> Any:
    """The int64 words at an address."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], I64.as_pointer())

    return types.CPointer(int64)(int64), generate


@intrinsic
def at(typing: Any, words: Any, index: Any) -> Any:
    """The address of `words[index]`."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.ptrtoint(builder.gep(args[0], [args[1]]), I64)

    return int64(words, int64), generate


@intrinsic
def read(typing: Any, words: Any, index: Any) -> Any:
    """`words[index]`, which other threads write."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.load_atomic(builder.gep(args[0], [args[1]]), "seq_cst", 8)

    return int64(words, int64), generate


@intrinsic
def write(typing: Any, words: Any, index: Any, value: Any) -> Any:
    """`words[index] = value`, for other threads to see, after everything that was written before."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        builder.store_atomic(args[2], builder.gep(args[0], [args[1]]), "seq_cst", 8)
        return context.get_dummy_value()

    return types.void(words, int64, int64), generate


def _exchange(operation: str) -> Any:
    @intrinsic
    def update(typing: Any, words: Any, index: Any, value: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return builder.atomic_rmw(operation, builder.gep(args[0], [args[1]]), args[2], "seq_cst")

        return int64(words, int64, int64), generate

    return update


# words[index] += value, &= value, = value; each gives what was there before.
add, mask, swap = _exchange("add"), _exchange("and"), _exchange("xchg")


@intrinsic
def replace(typing: Any, words: Any, index: Any, old: Any, new: Any) -> Any:
    """`words[index] = new` if it is `old`; gives whether it was."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        place = builder.gep(args[0], [args[1]])
        return builder.extract_value(builder.cmpxchg(place, args[2], args[3], "seq_cst", "seq_cst"), 1)

    return types.boolean(words, int64, int64, int64), generate


@intrinsic
def pause(typing: Any) -> Any:
    """Tell the processor that this thread only waits."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        function = ir.FunctionType(ir.VoidType(), [])
        builder.call(builder.module.declare_intrinsic("llvm.x86.sse2.pause", fnty=function), [])
        return context.get_dummy_value()

    return types.void(), generate


@helper
def now_ns(team: Any, line: int) -> Any:
    """The time since some moment."""
    call(team[CLOCK], (int64(_MONOTONIC), at(team, line + TIME)))
    return read(team, line + TIME) * int64(1000000000) + read(team, line + TIME + 1)


@helper
def wake(team: Any, word: int, threads: int) -> None:
    """Wake up to so many threads that sleep on a word."""
    call(team[SYSCALL], (int64(FUTEX), at(team, word), int64(FUTEX_WAKE), threads, int64(0), int64(0), int64(0)))


@helper
def sleep_on(team: Any, word: int, value: int) -> None:
    """Sleep while the lower half of a word is `value`, until somebody wakes us."""
    call(team[SYSCALL], (int64(FUTEX), at(team, word), int64(_FUTEX_WAIT), value, int64(0), int64(0), int64(0)))


@helper
def move(team: Any, line: int, thread: int, cpu: int) -> None:
    """Move a thread to a CPU, where it is to stay."""
    for word in range(CPU_WORDS):
        team[line + CPUS + word] = 0
    if 0 <= cpu < 64 * CPU_WORDS:
        team[line + CPUS + cpu // 64] = int64(1) << (cpu % 64)
        call(team[SET_AFFINITY], (thread, int64(8 * CPU_WORDS), at(team, line + CPUS)))


@helper
def free(team: Any, thread: int) -> None:
    """Let a thread go where this process may."""
    call(team[SET_AFFINITY], (thread, team[ALLOWED_BYTES], team[ALLOWED]))


@helper
def work(team: Any, number: int) -> None:
    """Take part in the job that is open."""
    pieces = at(team, COUNT)
    if team[WORDS_OF_TASK] == 1:
        call(team[JOB], (team[TASK], number, pieces))
    else:
        call(team[JOB], (team[TASK], team[FIRST], team[SECOND], number, pieces))


@helper
def patience_ns(team: Any, now: int) -> Any:
    """The time after which a thread is taken to have lost its CPU: that of some pieces of the job that is done now."""
    if not team[MOVES]:
        return int64(0)
    return max(team[PATIENCE_NS], 2 * (now - team[OPENED_NS]) * team[THREADS] // max(team[COUNT], 1))


@helper
def settle(team: Any, own: int, number: int, owner_cpu: int) -> None:
    """Give a helper a CPU of its own where threads need all CPUs; else let the kernel find it one."""
    line, place = HELPERS + number * LINE, number - 1
    if team[ALLOWED_CPUS] > team[THREADS] or number >= team[ALLOWED_CPUS]:
        free(team, team[line + ID])
        return
    for other in range(number):  # the owner's is left out
        place += int64(team[CPU_LIST + other] == owner_cpu)
    move(team, own, team[line + ID], team[CPU_LIST + place])
    team[line + PINNED] = 1


@helper
def rescue_helpers(team: Any, own: int) -> None:
    """Give this CPU to the helpers that are inside, and sleep until they have left."""
    cpu = ask(team[GETCPU], ())
    write(team, CONTENDED_NS, now_ns(team, own) + team[CALM_NS])
    write(team, OWNER_SLEEPS, int64(1))
    team[RESCUES] += 1
    for number in range(1, team[THREADS]):
        line = HELPERS + number * LINE
        if team[MOVES] and read(team, line + INSIDE):
            move(team, own, team[line + ID], cpu)
    while read(team, STATE) & ACTIVE:
        sleep_on(team, OWNER_SLEEPS, int64(1))
    write(team, OWNER_SLEEPS, int64(0))
    for number in range(1, team[THREADS] if team[MOVES] else 0):
        settle(team, own, number, cpu)


@helper
def wait_for_helpers(team: Any, own: int) -> None:
    """Return when no helper is inside."""
    if read(team, STATE) & ACTIVE == 0:
        return
    now = now_ns(team, own)
    until = now + patience_ns(team, now)
    while read(team, STATE) & ACTIVE:
        for _ in range(_PAUSES):
            pause()
        if now_ns(team, own) > until:
            rescue_helpers(team, own)
            return


@helper
def be_calm(team: Any, own: int, now: int) -> None:
    """Let helpers go where they like again, when nobody has lost its CPU for some time."""
    if team[CONTENDED_NS] and now > read(team, CONTENDED_NS):
        write(team, CONTENDED_NS, int64(0))
        for number in range(1, team[THREADS]):
            line = HELPERS + number * LINE
            if team[line + PINNED]:
                team[line + PINNED] = 0
                free(team, team[line + ID])


@helper
def seize(team: Any) -> None:
    """Become the owner, when nobody else is."""
    if not replace(team, BUSY, int64(0), int64(1)):
        while swap(team, BUSY, int64(2)):
            sleep_on(team, BUSY, int64(2))


@helper
def release(team: Any) -> None:
    """Let somebody else be the owner."""
    if swap(team, BUSY, int64(0)) == 2:
        wake(team, BUSY, int64(1))


@helper
def share_out(team: Any, threads: int, count: int) -> None:
    """Give each thread a range of pieces to begin with: neighbours are read fastest by one thread."""
    team[COUNT], team[COUNT + 1] = count, threads
    for number in range(threads):
        line = RANGES + 8 * number
        team[line], team[line + 1] = count * number // threads, count * (number + 1) // threads


def run(address: int, job: int, words: int, task: int, first: int, second: int, threads: int, count: int) -> None:
    """Have `threads` threads, this one among them, do `count` pieces of a job.

    The job is a C function of `words` words (1: task; 3: task, first, second), the number of the thread, and the
    address of how many pieces there are, how many threads, and each thread's range (see `RANGES`).
    """
    team = table(address)
    seize(team)
    own = HELPERS
    share_out(team, threads, count)
    team[JOB], team[WORDS_OF_TASK], team[TASK], team[FIRST], team[SECOND] = job, words, task, first, second
    team[THREADS] = threads
    if threads == 1 or count == 1:
        work(team, int64(0))
        release(team)
        return
    team[OPENED_NS] = now_ns(team, own)
    be_calm(team, own, team[OPENED_NS])
    team[OWNER], team[OWNER_CPU] = ask(team[GETTID], ()), ask(team[GETCPU], ())
    generation = (read(team, STATE) >> 16) + 1
    write(team, STATE, generation << 16 | int64(OPEN))
    write(team, WAKE, generation & int64(0x7FFFFFFF))
    if read(team, SLEEPERS):
        wake(team, WAKE, int64(EVERYBODY))
    work(team, int64(0))
    mask(team, STATE, ~int64(OPEN))
    wait_for_helpers(team, own)
    release(team)


@helper
def enter(team: Any, generation: int) -> bool:
    """Come into the open job of a generation; gives whether there was one."""
    while True:
        state = read(team, STATE)
        if (state >> 16) & int64(0x7FFFFFFF) != generation or state & OPEN == 0:
            return False
        if replace(team, STATE, state, state + 1):
            return True


@helper
def leave(team: Any) -> None:
    """Go out of a job; the last wakes an owner that sleeps."""
    if (add(team, STATE, int64(-1)) - 1) & ACTIVE == 0 and swap(team, OWNER_SLEEPS, int64(0)):
        wake(team, OWNER_SLEEPS, int64(1))


@helper
def rescue_owner(team: Any, number: int) -> None:
    """Change CPUs with an owner that has lost its own."""
    line = HELPERS + number * LINE
    cpu = ask(team[GETCPU], ())
    write(team, CONTENDED_NS, now_ns(team, line) + team[CALM_NS])
    if cpu != team[OWNER_CPU]:
        move(team, line, team[OWNER], cpu)
        free(team, team[OWNER])
    team[OWNER_RESCUES] += 1
    settle(team, line, number, cpu)


@helper
def wait_for_job(team: Any, number: int, seen: int) -> Any:
    """Return the generation of a job that is not `seen`: soon after it is opened, or when somebody wakes us."""
    line = HELPERS + number * LINE
    began = now_ns(team, line)
    spin_ns = team[SHORT_SPIN_NS] if read(team, CONTENDED_NS) else team[SPIN_NS]
    patience = patience_ns(team, began)
    rescued = number != 1 or not team[MOVES]
    while True:
        for _ in range(_PAUSES):
            generation = read(team, WAKE)
            if generation != seen:
                return generation
            pause()
        waited = now_ns(team, line) - began
        state = read(team, STATE)
        is_open = state & OPEN and (state >> 16) & int64(0x7FFFFFFF) == seen  # what we have left is open still
        if not rescued and waited > patience and is_open:
            rescue_owner(team, number)
            rescued, waited = True, spin_ns
        if waited >= spin_ns and (rescued or not is_open):
            add(team, SLEEPERS, int64(1))
            sleep_on(team, WAKE, seen)
            add(team, SLEEPERS, int64(-1))


def help_out(team: Any, number: int) -> None:
    """Be a helper, until the team stops."""
    line = HELPERS + number * LINE
    team[line + ID] = ask(team[GETTID], ())
    seen = int64(0)
    while True:
        seen = wait_for_job(team, number, seen)
        if read(team, STOP):
            return
        if number < team[THREADS] and enter(team, seen):
            write(team, line + INSIDE, int64(1))
            work(team, number)
            write(team, line + INSIDE, int64(0))
            leave(team)


_TEAM = types.CPointer(int64)
SIGNATURES: dict[Callable[..., None], tuple[Any, ...]] = {
    run: (int64,) * 8,
    help_out: (_TEAM, int64),
}
