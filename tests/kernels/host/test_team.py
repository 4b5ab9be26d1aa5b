"""The team's threads: every piece once, whoever comes late or loses its CPU. Jobs here are Python functions."""

import ctypes
import os
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial

import pytest

from offload.host.kernels import team as words
from offload.host.team import Team, piece_units

Job = Callable[[int, int], None]  # takes the number of a thread and a piece
_JOB = ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64)
_taking = threading.Lock()


@pytest.fixture
def team() -> Iterator[Team]:
    made = Team()
    made.grow(4)
    yield made
    made.stop()


def run(team: Team, job: Job, threads: int, pieces: int) -> None:
    """Do what a compiled job does: take pieces, of the own range first."""

    def take(table: "ctypes.Array[ctypes.c_int64]", thread: int) -> int | None:
        with _taking:
            for i in range(table[1]):
                word = 8 + 8 * ((thread + i) % table[1])
                if table[word] < table[word + 1]:
                    table[word] += 1
                    return int(table[word]) - 1
        return None

    def work(task: int, thread: int, address: int) -> None:
        table = (ctypes.c_int64 * (8 + 8 * threads)).from_address(address)
        while (piece := take(table, thread)) is not None:
            job(thread, piece)

    function = _JOB(work)
    address = ctypes.cast(function, ctypes.c_void_p).value
    assert address is not None
    team.run(address, (0,), threads, pieces)


def _count(done: Counter[int], thread: int, piece: int) -> None:
    done.update([piece])


def _until(condition: Callable[[], bool]) -> None:
    turns = threading.Event()
    while not condition():
        turns.wait(0.001)


@pytest.mark.parametrize("threads", [1, 2, 4])
@pytest.mark.parametrize("pieces", [1, 2, 3, 7, 64])
def test_every_piece_is_done_once(team: Team, threads: int, pieces: int) -> None:
    for _ in range(20):
        done: Counter[int] = Counter()
        run(team, partial(_count, done), threads, pieces)
        assert done == Counter(range(pieces))


def test_only_so_many_threads_take_part(team: Team) -> None:
    seen = set()
    for _ in range(50):
        run(team, lambda thread, piece: seen.add(thread), 2, 16)
    assert seen <= {0, 1}


def test_a_helper_that_loses_its_cpu_in_a_piece_is_waited_for_and_may_go_where_it_likes_afterwards(team: Team) -> None:
    inside, may_leave = threading.Event(), threading.Event()
    allowed = os.sched_getaffinity(0)

    def job(thread: int, piece: int) -> None:
        if thread == 1:
            inside.set()
            assert may_leave.wait(10)
        elif thread == 0:
            assert inside.wait(10)

    def let_go() -> None:
        _until(lambda: team.rescues > before)
        may_leave.set()

    def is_free() -> bool:
        run(team, lambda thread, piece: None, 2, 8)
        return os.sched_getaffinity(helper) == allowed

    before, helper = team.rescues, team.native_ids[1]
    assert helper is not None
    watching = threading.Thread(target=let_go)
    watching.start()
    run(team, job, 2, 2)
    watching.join()
    _until(is_free)


def test_an_owner_that_loses_its_cpu_in_a_piece_changes_places_with_a_helper(team: Team) -> None:
    def job(thread: int, piece: int) -> None:
        if thread == 0:
            _until(lambda: team.owner_rescues > before)

    before = team.owner_rescues
    run(team, job, 2, 2)
    assert team.owner_rescues > before
    assert os.sched_getaffinity(0)


def test_helpers_that_do_not_come_are_not_waited_for() -> None:
    alone = Team()
    done: Counter[int] = Counter()
    run(alone, lambda thread, piece: done.update([piece]), 4, 16)
    assert done == Counter(range(16))


def test_callers_in_several_threads_get_each_their_own(team: Team) -> None:
    results: dict[int, Counter[int]] = {caller: Counter() for caller in range(6)}

    def call(caller: int) -> None:
        for _ in range(30):
            run(team, lambda thread, piece: results[caller].update([piece]), 3, 5)

    callers = [threading.Thread(target=call, args=(caller,)) for caller in results]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert all(done == Counter(dict.fromkeys(range(5), 30)) for done in results.values())


def test_a_stopped_team_has_no_threads() -> None:
    team = Team()
    team.grow(3)
    helpers = set(team.native_ids[1:])
    assert helpers <= {thread.native_id for thread in threading.enumerate()}
    team.stop()
    assert not helpers & {thread.native_id for thread in threading.enumerate()}


def test_growing_at_once_from_several_threads_starts_each_helper_once() -> None:
    team = Team()
    growing = [threading.Thread(target=team.grow, args=(5,)) for _ in range(8)]
    for thread in growing:
        thread.start()
    for thread in growing:
        thread.join()
    assert team.threads == 5
    team.stop()


def test_the_process_ends_and_a_fork_has_threads_of_its_own() -> None:
    program = """
import os, warnings
warnings.simplefilter("ignore")
import numpy as np
from offload.host.cast import cast_activations
from offload.spec.linear import WeightFormat
from offload.host.team import shared_team
def cast():
    x, out = np.ones((64, 4096), np.float32), np.zeros((64, 4096), np.float16)
    cast_activations(x, out, WeightFormat.FP16)
    assert out.sum(dtype=np.float64) == x.size
shared_team().grow(3)
cast()
child = os.fork()
if child == 0:
    assert shared_team().threads == 1
    shared_team().grow(3)
    cast()
    shared_team().stop()
    os._exit(7)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
cast()
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


@pytest.mark.parametrize("rows", [1, 2, 8, 128])
@pytest.mark.parametrize("multiple", [1, 3, 8])
def test_pieces_are_multiples_and_shrink_with_the_rows(rows: int, multiple: int) -> None:
    sizes = [piece_units(units, 2, rows, multiple) for units in (1, 8, 100, 1000)]
    assert all(size % multiple == 0 and size > 0 for size in sizes)
    assert sizes == sorted(sizes)
    assert sizes[-1] * rows <= 24 or sizes[-1] == multiple


def test_the_table_has_room_for_all() -> None:
    assert words.HELPERS >= words.RANGES + 8 * words.MOST_THREADS
