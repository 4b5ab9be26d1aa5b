"""The line that stays at the bottom of a terminal: shown on one, nothing elsewhere, and gone afterwards."""

import fcntl
import io
import os
import pty
import re
import struct
import termios
from collections.abc import Iterator
from typing import TextIO

import pytest

from hybrid.show import status_line
from hybrid.show.status_line import StatusLine

ROWS, COLUMNS = 5, 20
_TOKEN = re.compile(r"\x1b\[(?P<numbers>[0-9;]*)(?P<letter>[A-Za-z])|\x1b(?P<short>[78])|(?P<text>[^\x1b])")


class Screen:
    """As much of a VT100 as the line needs: a cursor, a scrolling region, text."""

    def __init__(self) -> None:
        self.rows = [""] * ROWS
        self.row, self.column = ROWS - 1, 0  # as after some output
        self.bottom = ROWS - 1
        self._saved = (0, 0)

    def feed(self, output: str) -> "Screen":
        for token in _TOKEN.finditer(output):
            if token["short"]:
                self._save_or_restore(token["short"])
            elif token["letter"]:
                self._control(token["letter"], [int(number) for number in token["numbers"].split(";") if number])
            else:
                self._write(token["text"])
        return self

    def _save_or_restore(self, which: str) -> None:
        if which == "7":
            self._saved = (self.row, self.column)
        else:
            self.row, self.column = self._saved

    def _control(self, letter: str, numbers: list[int]) -> None:
        if letter == "r":
            self.bottom = numbers[1] - 1 if numbers else ROWS - 1
            self.row = self.column = 0
        elif letter == "H":
            self.row, self.column = numbers[0] - 1, numbers[1] - 1
        elif letter == "A":
            self.row -= 1
        elif letter == "K":
            self.rows[self.row] = ""
        else:
            assert letter == "m"

    def _write(self, character: str) -> None:
        if character == "\n":
            self.column = 0
            if self.row == self.bottom:
                del self.rows[0]
                self.rows.insert(self.bottom, "")
            else:
                self.row += 1
        elif character != "\r":
            self.rows[self.row] = self.rows[self.row][: self.column].ljust(self.column) + character
            self.column += 1


class Terminal(io.StringIO):
    """Keeps what is written to it, and has the size of a pseudo-terminal."""

    def __init__(self) -> None:
        super().__init__()
        self._outside, self._inside = pty.openpty()
        self.resize(ROWS)

    def isatty(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._inside

    def resize(self, rows: int) -> None:
        fcntl.ioctl(self._outside, termios.TIOCSWINSZ, struct.pack("4H", rows, COLUMNS, 0, 0))

    def shown(self) -> str:
        """Take what was written since the last time."""
        text = self.getvalue()
        self.seek(0)
        self.truncate()
        return text

    def hang_up(self) -> None:
        os.close(self._outside)
        os.close(self._inside)


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[Terminal]:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(status_line, "_PERIOD_S", 0.0)
    made = Terminal()
    yield made
    made.hang_up()


def test_text_scrolls_above_the_line_which_is_gone_at_the_end(terminal: Terminal) -> None:
    numbers = iter(range(10))
    screen = Screen()
    with StatusLine(terminal, lambda: f"status {next(numbers)}") as status:
        for word in ("one\ntwo\n", "three", " four\nfive"):
            terminal.write(word)
            status.update()
        assert screen.feed(terminal.shown()).rows == ["one", "two", "three four", "five", "status 2"]
    terminal.write(" six\nseven\neight\n")
    assert screen.feed(terminal.shown()).rows == ["three four", "five six", "seven", "eight", ""]


def test_the_line_is_cut_to_the_width_and_follows_the_size(terminal: Terminal) -> None:
    with StatusLine(terminal, lambda: "x" * 99) as status:
        status.update()
        assert "x" * (COLUMNS - 1) + "\x1b[m" in terminal.shown()
        terminal.resize(ROWS + 3)
        status.update()
        assert f"\x1b[1;{ROWS + 2}r" in terminal.shown()


def test_it_is_shown_a_few_times_a_second_only(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status_line, "_PERIOD_S", 3600)
    shown: list[str] = []
    with StatusLine(terminal, lambda: shown.append("") or "") as status:  # type: ignore[func-returns-value]
        for _ in range(100):
            status.update()
    assert len(shown) == 1


def test_nothing_where_there_is_no_terminal_that_could(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    def use(file: TextIO) -> None:
        with StatusLine(file, lambda: pytest.fail("nobody sees it")) as status:
            status.update()
        file.write("end\n")

    text = io.StringIO()
    use(text)
    assert text.getvalue() == "end\n"
    monkeypatch.setenv("TERM", "dumb")
    use(terminal)
    assert terminal.shown() == "end\n"
    monkeypatch.setenv("TERM", "xterm")
    terminal.resize(2)
    use(terminal)
    assert terminal.shown() == "end\n"


def test_an_error_takes_the_line_away(terminal: Terminal) -> None:
    screen = Screen()

    def fail() -> None:
        with StatusLine(terminal, lambda: "status") as status:
            status.update()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert screen.feed(terminal.shown()).rows == [""] * ROWS
    assert screen.bottom == ROWS - 1
