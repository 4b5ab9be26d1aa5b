"""The standard streams of a process: open, and failing as those of other programs do.

What is written for people may be lost, on a full disk or a closed pipe, and the result still comes. A result that is
lost ends the command with one line, wherever in the program it was written.
"""

import io
import os
import select
import sys
from typing import TextIO

from hybrid.errors import UsageError


class OutputLostError(OSError):
    """Standard output cannot be written any more. No error of one text or one turn: it ends the command."""


def prepare_streams() -> None:
    """Make the standard streams of this process safe to write to, if nobody has put others in their places.

    Raises UsageError when it is standard output that is missing: the result could go nowhere.
    """
    is_silent = sys.stdout is None
    _fill_closed_streams()
    if sys.stderr is sys.__stderr__ or sys.__stderr__ is None:
        sys.stderr = _text(_Expendable(2), "backslashreplace", by_lines=True)
    if is_silent:
        raise UsageError("standard output is closed; send it to a file, or to /dev/null")
    if sys.stdout is sys.__stdout__:
        # A terminal without UTF-8 shows "?" and goes on.
        sys.stdout = _text(_Result(1), "replace", by_lines=os.isatty(1), encoding=sys.__stdout__.encoding)


def discard(descriptor: int) -> None:
    """Send a stream nowhere: what is still in a buffer would fail again when Python closes it."""
    os.dup2(os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC), descriptor)


def _fill_closed_streams() -> None:
    """Open those that this process was started without, as nothing; no file of a model may take their place."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free: this one
    sys.stdin = sys.stdin or os.fdopen(0, "r", closefd=False)
    sys.stdout = sys.stdout or os.fdopen(1, "w", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", closefd=False)


def _text(raw: io.RawIOBase, errors: str, by_lines: bool, encoding: str = "") -> TextIO:
    buffered = io.BufferedWriter(raw)
    return io.TextIOWrapper(buffered, encoding or sys.stderr.encoding, errors, line_buffering=by_lines)


class _Result(io.RawIOBase):
    """Bytes to standard output.

    Raises OutputLostError where they cannot be written, BrokenPipeError where nobody reads them.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._descriptor

    def isatty(self) -> bool:
        return os.isatty(self._descriptor)

    def write(self, data: memoryview) -> int:  # type: ignore[override]
        while True:
            try:
                return os.write(self._descriptor, data)
            except BlockingIOError:  # somebody else has made it so
                select.select([], [self._descriptor], [])
            except OSError as error:
                discard(self._descriptor)
                self._failed(error)
                return len(data)

    def _failed(self, error: OSError) -> None:
        if isinstance(error, BrokenPipeError):
            raise error
        raise OutputLostError(error.errno, f"standard output cannot be written: {error.strerror}") from None


class _Expendable(_Result):
    """Bytes to standard error, as long as they can be written there."""

    def _failed(self, error: OSError) -> None:
        pass
