"""The one thread of the process that runs models: kernels, onnxruntime and devices are called from no other.

Who calls hands a function over and waits for what it gives; calls of several threads are run in the order in which they
came. Ctrl-C reaches the main thread only, so it ends the waiting and never tears what runs.
"""

import atexit
import os
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, TypeVar

from hybrid.errors import EngineError

T = TypeVar("T")


class Abandoned(Exception):
    """Ends a call that nobody waits for any more."""


class _Call:
    """A function on its way to the thread, and what it gave."""

    def __init__(self, function: Callable[[], Any]) -> None:
        self.function: Callable[[], Any] | None = function
        self.abandoned = False
        self.result: Any = None
        self.error: BaseException | None = None
        self.done = threading.Lock()
        self.done.acquire()

    def run(self) -> None:
        """Call the function, on the thread."""
        try:
            assert self.function is not None
            self.result = self.function()
        except BaseException as error:
            self.error = error
        finally:
            self.function = None  # what it holds is gone before whoever waits goes on
            self.done.release()


class EngineThread:
    """A thread that runs one call after the other."""

    def __init__(self) -> None:
        self._calls: SimpleQueue[_Call] = SimpleQueue()
        self._process = os.getpid()
        self._running: _Call | None = None
        self._protected = 0
        self._ending = False
        self._thread = threading.Thread(target=self._serve, name="hybrid-engine", daemon=True)
        self._thread.start()
        atexit.register(self._finish)

    @property
    def is_current(self) -> bool:
        """Tell whether this is the thread that asks."""
        return threading.get_ident() == self._thread.ident

    @property
    def is_foreign(self) -> bool:
        """Tell whether this process is a fork of the one that the thread is in."""
        return os.getpid() != self._process

    def run(self, function: Callable[[], T]) -> T:
        """Have the thread call `function`, and wait; gives what it gives, and raises what it raises.

        An exception in the waiting (Ctrl-C) leaves at once; the call ends at its next `check`. Raises EngineError in
        a fork of the process, which has no such thread.
        """
        if self.is_current:
            return function()
        if self.is_foreign:
            raise EngineError(
                "this process is a fork of the one that loaded the model, and only that one can run it; load the model "
                "here, or start processes with multiprocessing's spawn"
            )
        call = _Call(function)
        try:
            self._calls.put(call)
            while not call.done.acquire(timeout=_WAKE_S):
                pass
        except BaseException:
            call.abandoned = True
            raise
        error, result = call.error, call.result
        del call, function
        if error is None:
            return result  # type: ignore[no-any-return]
        try:
            raise error
        finally:
            del error  # its traceback has this frame

    def check(self) -> None:
        """Raise Abandoned where nobody waits for the running call any more; between steps, on the thread."""
        if self._running is not None and self._running.abandoned and not self._protected:
            raise Abandoned

    def protected(self, function: Callable[[], T]) -> T:
        """Call `function` with no `check` in it raising: the work of one caller that another one waits for."""
        self._protected += 1
        try:
            return function()
        finally:
            self._protected -= 1

    def _serve(self) -> None:
        while not self._ending:
            self._running = self._calls.get()
            self._running.run()
            self._running = None

    def _finish(self) -> None:
        """Abandon what runs and wait for its end: libraries are unloaded next."""
        self._ending = True
        running = self._running
        if running is not None and not self.is_foreign:
            running.abandoned = True
            running.done.acquire(timeout=_LONGEST_CALL_S)


_WAKE_S = 0.1  # a signal that another thread raises does not end the waiting of this one
_LONGEST_CALL_S = 5.0  # what there may be between two checks, at the end of the process
_starting = threading.Lock()
_thread: EngineThread | None = None


def engine_thread() -> EngineThread:
    """The thread of this process; started by the first who asks."""
    global _thread
    with _starting:
        if _thread is None:
            _thread = EngineThread()
        return _thread


def _forget_thread() -> None:
    global _thread, _starting
    _starting, _thread = threading.Lock(), None  # a fork has neither the thread nor whoever held the lock


os.register_at_fork(after_in_child=_forget_thread)
