"""A line at the bottom of a terminal that stays there while text scrolls above it."""

import os
from collections.abc import Callable
from contextlib import suppress
from time import monotonic
from types import TracebackType
from typing import TextIO

from hybrid.show.wrapping import whole_parts

_PERIOD_S = 0.25
_FEWEST_ROWS = 4
# Escape sequences of the VT100, which every terminal knows since.
_SAVE, _RESTORE, _UP = "\x1b7", "\x1b8", "\x1b[A"
_CLEAR_ROW, _SCROLL_ALL, _DIM, _PLAIN = "\x1b[2K", "\x1b[r", "\x1b[2m", "\x1b[m"


class StatusLine:
    """Shows what `line` gives, a few times a second, while a `with` lasts; nothing where `file` is no terminal.

    rich's own would need all output to pass through it, and text comes here in pieces of lines, on another stream.
    """

    def __init__(self, file: TextIO, line: Callable[[], str]) -> None:
        self._file = file
        self._line = line
        self._size = (0, 0)  # columns and rows; no rows: nothing is shown
        self._next_s = 0.0

    def __enter__(self) -> "StatusLine":
        if self._file.isatty() and not _is_dumb(self._file):
            self._size = self._read_size()
        if self._size[1]:
            self._write("\n" + self._reserve() + _UP)  # so that the cursor is not in the last row
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._size[1]:
            self._write(f"{_SAVE}{_SCROLL_ALL}{self._last_row()}{_CLEAR_ROW}{_RESTORE}")

    def update(self) -> None:
        """Show the line anew, unless that has just been done."""
        if not self._size[1] or monotonic() < self._next_s:
            return
        self._next_s = monotonic() + _PERIOD_S
        again = ""
        if self._read_size() not in (self._size, (0, 0)):
            self._size = self._read_size()
            again = self._reserve()
        text = whole_parts(self._line(), self._size[0] - 1)
        # In one piece, so that nothing else is written in between.
        self._write(f"{again}{_SAVE}{self._last_row()}{_CLEAR_ROW}{_DIM}{text}{_PLAIN}{_RESTORE}")

    def _reserve(self) -> str:
        """Let all rows but the last one scroll; that moves the cursor, which has to come back."""
        return f"{_SAVE}\x1b[1;{self._size[1] - 1}r{_RESTORE}"

    def _last_row(self) -> str:
        return f"\x1b[{self._size[1]};1H"

    def _read_size(self) -> tuple[int, int]:
        try:
            columns, rows = os.get_terminal_size(self._file.fileno())
        except OSError:
            return 0, 0
        return (columns, rows) if rows >= _FEWEST_ROWS else (0, 0)

    def _write(self, text: str) -> None:
        with suppress(OSError):  # a terminal that is gone is no reason to end
            self._file.write(text)
            self._file.flush()


def _is_dumb(file: TextIO) -> bool:
    """Tell whether a terminal has no cursor to be moved."""
    from rich.console import Console

    return Console(file=file).is_dumb_terminal
