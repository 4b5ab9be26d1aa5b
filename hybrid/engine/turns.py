"""Whose text an engine's cache holds: texts of several callers take turns, each a whole one.

A text is made on the engine's thread, a few milliseconds ahead of who reads it, so that handing over costs little. One
that is half read when another caller begins a text is made to its end first, and kept for its reader. The main thread
cannot be waiting for itself: where it begins another text, the one it has half read is superseded.
"""

import sys
import threading
from collections import deque
from collections.abc import Generator, Iterator
from time import perf_counter
from typing import Any, Generic, TypeVar

from hybrid.engine.engine_thread import Abandoned, EngineThread
from hybrid.errors import EngineError, SupersededError

T = TypeVar("T")

_AHEAD_S = 0.004  # handing over takes some 40 µs, a step of the demo 400


class Turns:
    """The text whose turn it is; to be asked on the engine's thread."""

    def __init__(self, thread: EngineThread) -> None:
        self.thread = thread
        self._text: Text[Any] | None = None

    def take(self, text: "Text[Any] | None", caller: object) -> None:
        """Give the turn to a text, or to calls of `caller` beside any text. Raises Abandoned when that takes too long
        for who waits; then the turn is whose it was.
        """
        before = self._text
        if before is text:
            return
        if before is not None and not before.ended:
            if before.caller == caller:
                before.end(SupersededError("this text was superseded: another one was begun before its end"))
            else:
                before.finish()
        self._text = text

    def close(self, error: EngineError) -> None:
        """End the text whose turn it is."""
        if self._text is not None:
            self._text.end(error)
        self._text = None


class Text(Iterator[T], Generic[T]):
    """Iterates, in any thread, over what a generator yields on the engine's thread."""

    def __init__(self, turns: Turns, steps: Generator[T, None, None]) -> None:
        self.caller = this_caller()
        self.ended = False
        self._turns = turns
        self._thread = turns.thread
        self._steps = steps
        self._made: deque[T] = deque()
        self._error: BaseException | None = None

    def __next__(self) -> T:
        if not self._made and not self.ended:
            self._thread.run(self._go_on)
        if self._made:
            return self._made.popleft()
        if self._error is not None:
            raise self._error
        raise StopIteration

    def close(self) -> None:
        """Leave it where it is, and close the generator."""
        if not self.ended and not self._thread.is_foreign:
            self._thread.run(lambda: self.end(None))

    def finish(self) -> None:
        """Make the rest at once. Raises Abandoned between two steps, and can be called again."""
        while not self.ended:
            self._thread.protected(lambda: self._make(0.0))
            self._thread.check()

    def end(self, error: BaseException | None) -> None:
        """End it where it is; who reads on gets `error`, where there is one."""
        if not self.ended:
            self._thread.protected(self._steps.close)
            self.ended = True
            self._error = error
            if error is not None:
                self._made.clear()

    def _go_on(self) -> None:
        if not self.ended:
            self._turns.take(self, self.caller)
            self._make(_AHEAD_S)

    def _make(self, ahead_s: float) -> None:
        """Make what comes next, and more until `ahead_s` is over."""
        until_s = perf_counter() + ahead_s
        try:
            while True:
                self._made.append(next(self._steps))
                if perf_counter() >= until_s:
                    return
        except (StopIteration, Abandoned):
            self.ended = True
        except BaseException as error:
            self.ended = True
            self._error = error


def this_caller() -> object:
    """Who calls: equal for calls that cannot be waiting for each other, those of the main thread or of one asyncio task
    in it. A thread of a pool works for many.
    """
    if threading.current_thread() is not threading.main_thread():
        return object()
    asyncio = sys.modules.get("asyncio")
    try:
        task = None if asyncio is None else asyncio.current_task()
    except RuntimeError:  # no event loop runs in this thread
        task = None
    return "main" if task is None else task
