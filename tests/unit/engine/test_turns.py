"""One thread that does all the work, and texts that take turns on it."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import pytest

from hybrid.engine.engine_thread import Abandoned, EngineThread, engine_thread
from hybrid.engine.turns import Text, Turns
from hybrid.errors import EngineError, SupersededError

T = TypeVar("T")


@pytest.fixture
def turns() -> Turns:
    return Turns(engine_thread())


class Steps:
    """A text of `count` pieces, and what became of it."""

    def __init__(self, name: str, count: int, log: list[str]) -> None:
        self.name, self.count, self.log = name, count, log
        self.closed = False

    def __call__(self) -> Generator[str, None, None]:
        try:
            for number in range(self.count):
                assert engine_thread().is_current
                self.log.append(self.name)
                yield f"{self.name}{number}"
        finally:
            self.closed = True


def in_thread(function: Callable[[], T]) -> T:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function).result()


def test_calls_of_all_threads_run_on_one() -> None:
    def where() -> int:
        return engine_thread().run(threading.get_ident)

    assert len({where(), in_thread(where), engine_thread().run(where)}) == 1
    assert where() != threading.get_ident()


def test_an_error_comes_to_who_called() -> None:
    def fail() -> None:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        engine_thread().run(fail)
    assert engine_thread().run(lambda: 3) == 3


def test_ctrl_c_while_waiting_leaves_at_once_and_ends_the_call_at_its_next_check() -> None:
    thread, begun, go_on = EngineThread(), threading.Event(), threading.Event()
    ended: list[str] = []

    def work() -> None:
        begun.set()
        signal.raise_signal(signal.SIGINT)  # delivered to the main thread, which waits for this one
        go_on.wait()
        try:
            thread.check()
        except Abandoned:
            ended.append("abandoned")
            raise

    with pytest.raises(KeyboardInterrupt):
        thread.run(work)
    assert begun.is_set()
    go_on.set()
    thread.run(lambda: None)  # behind the other one
    assert ended == ["abandoned"]


def test_a_text_is_read_as_it_was_made(turns: Turns) -> None:
    steps = Steps("a", 5, [])
    assert list(Text(turns, steps())) == ["a0", "a1", "a2", "a3", "a4"]
    assert steps.closed


def test_a_text_begun_in_another_thread_first_has_the_half_read_one_made(turns: Turns) -> None:
    log: list[str] = []
    text = Text(turns, Steps("a", 10_000, log)())
    first = next(text)
    assert in_thread(lambda: list(Text(turns, Steps("b", 2, log)()))) == ["b0", "b1"]
    assert log == ["a"] * 10_000 + ["b"] * 2
    assert [first, *text] == [f"a{number}" for number in range(10_000)]


def test_tasks_of_one_event_loop_take_turns(turns: Turns) -> None:
    async def read(name: str) -> list[str]:
        pieces = []
        for piece in Text(turns, Steps(name, 2000, [])()):
            pieces.append(piece)
            await asyncio.sleep(0)
        return pieces

    async def both() -> list[list[str]]:
        return await asyncio.gather(read("a"), read("b"))

    assert asyncio.run(both()) == [[f"{name}{number}" for number in range(2000)] for name in "ab"]


def test_a_text_of_the_main_thread_is_superseded_by_its_next(turns: Turns) -> None:
    steps = Steps("a", 10_000, [])
    text = Text(turns, steps())
    next(text)
    assert list(Text(turns, Steps("b", 2, [])())) == ["b0", "b1"]
    assert steps.closed
    for _ in range(2):
        with pytest.raises(SupersededError):
            next(text)


def test_what_was_made_before_an_error_is_read_first(turns: Turns) -> None:
    def steps() -> Generator[int, None, None]:
        yield 1
        yield 2
        raise ValueError("no third")

    text = Text(turns, steps())
    assert [next(text), next(text)] == [1, 2]
    with pytest.raises(ValueError, match="no third"):
        next(text)
    assert list(Text(turns, Steps("b", 1, [])())) == ["b0"]


def test_a_closed_text_is_over_and_its_generator_closed(turns: Turns) -> None:
    steps = Steps("a", 10_000, [])
    text = Text(turns, steps())
    next(text)
    text.close()
    assert steps.closed
    made = list(text)  # what had been made ahead
    assert len(made) < 10_000


def test_turns_that_close_end_the_text_with_an_error(turns: Turns) -> None:
    text = Text(turns, Steps("a", 10_000, [])())
    next(text)
    engine_thread().run(lambda: turns.close(EngineError("closed")))
    with pytest.raises(EngineError, match="closed"):
        next(text)


def test_who_gives_up_waiting_leaves_the_text_before_whole(turns: Turns) -> None:
    making, interrupted = threading.Event(), threading.Event()

    def slow() -> Generator[int, None, None]:
        yield 0
        while not making.is_set():  # the 4 ms ahead
            yield 0
        signal.raise_signal(signal.SIGINT)  # to the main thread, which waits for its own text
        interrupted.wait()
        yield 1
        engine_thread().check()  # not for this text
        yield 2

    text = Text(turns, slow())
    in_thread(lambda: next(text))
    text.caller = object()  # another thread's
    making.set()
    with pytest.raises(KeyboardInterrupt):
        next(Text(turns, Steps("b", 1, [])()))
    interrupted.set()
    assert [piece for piece in text if piece] == [1, 2]


FORK = """
import os, sys
from hybrid.errors import EngineError
from hybrid.engine.engine_thread import engine_thread
thread = engine_thread()
thread.run(lambda: None)
child = os.fork()
if child == 0:
    try:
        thread.run(lambda: None)
    except EngineError as error:
        assert "fork" in str(error)
        os._exit(7 if engine_thread().run(lambda: 3) == 3 else 1)  # a new one
    os._exit(1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
assert thread.run(lambda: 4) == 4
"""


def test_a_fork_is_told_and_the_parent_goes_on() -> None:
    done = subprocess.run([sys.executable, "-c", FORK], timeout=60, env=os.environ, check=False)
    assert done.returncode == 0
