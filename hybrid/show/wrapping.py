"""Text in lines that fit a terminal: broken at words, and status lines between their parts."""

import re
import unicodedata
from collections.abc import Callable, Iterator

PART = " · "  # what separates the parts of a status line
_INDENT = "  "
_TAB_CELLS = 8
_SHELL_WORD = re.compile(r"""(?:"[^"]*"|'[^']*'|\S)+""")


def cells(text: str) -> int:
    """The columns that `text` takes on a terminal."""
    return len(text) if text.isascii() else sum(_cells(character) for character in text)


def _cells(character: str) -> int:
    if unicodedata.category(character) in ("Cc", "Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def fold(text: str, width: int, indent: str = _INDENT) -> str:
    """Every line of `text` in at most `width` cells, as far as its words are no longer; what goes on is indented.

    A status line is broken between its parts where they fit into a line, and a part between its words where not.
    """
    return "\n".join(line if cells(line) <= width else _fold(line, width, indent) for line in text.split("\n"))


def _fold(line: str, width: int, indent: str) -> str:
    lines, current = [], ""
    for unit, starts_anew in _units(line, width - len(indent)):
        if current and not starts_anew and cells(f"{current} {unit}") <= width:
            current += f" {unit}"
            continue
        if current:
            lines.append(current)
        current = unit if not lines else indent + unit
    return "\n".join([*lines, current])


def _units(line: str, width: int) -> Iterator[tuple[str, bool]]:
    """Yield what is not broken, and whether it must begin a line: parts that fit, the words of those that do not."""
    parts = line.split(PART)
    for number, part in enumerate(parts):
        unit = part + PART.rstrip() * (number + 1 < len(parts))
        if cells(unit) <= width and len(parts) > 1:
            yield unit, False
            continue
        for place, word in enumerate(unit.split()):
            yield word, place == 0 and number > 0


def whole_parts(line: str, width: int) -> str:
    """The parts of a status line, from the first on, that fit into `width` cells; a first one that does not is cut."""
    while cells(line) > width and PART in line:
        line = line.rpartition(PART)[0]
    while cells(line) > width:
        line = line[:-1]
    return line


def fold_command(line: str, width: int, indent: str = "") -> str:
    """A command for a shell, broken by backslashes between its words, to be copied whole."""
    lines, current = [], indent
    for word in _SHELL_WORD.findall(line):
        if current.strip() and cells(f"{current} {word} \\") > width:
            lines.append(f"{current} \\")
            current = f"{indent}    {word}"
        else:
            current += word if not current.strip() else f" {word}"
    return "\n".join([*lines, current])


class WordWrap:
    """Breaks text that comes in pieces at words, for a terminal whose width may change in between.

    A word is held back until it ends, so that nothing has to be taken back; one that is as long as a line is not.
    """

    def __init__(self, columns: Callable[[], int]) -> None:
        self._columns = columns
        self._used = 0  # cells of the line so far
        self._spaces = ""
        self._word = ""

    def feed(self, piece: str) -> str:
        """The next piece; gives what is to be written."""
        return "".join(self._take(character) for character in piece)

    def flush(self) -> str:
        """The word that was held back."""
        return self._put_word()

    def _take(self, character: str) -> str:
        if character == "\n":
            written = self._put_word() + "\n"
            self._used, self._spaces = 0, ""
            return written
        if character in " \t":
            written = self._put_word()
            self._spaces += " " if character == " " else " " * (_TAB_CELLS - self._used % _TAB_CELLS)
            return written
        written = self._put_word() if _cells(character) == 2 else ""  # such scripts are broken anywhere
        self._word += character
        return written + (self._put_word() if cells(self._word) >= self._columns() else "")

    def _put_word(self) -> str:
        if not self._word:
            return ""
        columns, length = self._columns(), cells(self._word)
        text = self._spaces + self._word
        self._used += len(self._spaces) + length
        if self._used > columns:
            text = ("\n" if self._used > length else "") + self._word
            self._used = length
        self._spaces = self._word = ""
        return text
