"""Lines at the end of a terminal's text that are drawn again and again."""

from collections.abc import Sequence
from contextlib import suppress
from types import TracebackType
from typing import IO

# Escape sequences of the VT100, which every terminal but a dumb one knows since.
_ERASE_BELOW, _HIDE, _SHOW = "\x1b[J", "\x1b[?25l", "\x1b[?25h"


class RedrawnLines:
    """Lines that take the place of those drawn before, while a `with` lasts; afterwards they are gone.

    The cursor waits, hidden, where the first line begins. A terminal that becomes narrower breaks lines that it shows,
    and takes the cursor along with its text: all that has to be erased is below it, however many rows that is now.
    """

    def __init__(self, file: IO[str]) -> None:
        self._file = file
        self._is_drawn = False

    def __enter__(self) -> "RedrawnLines":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.erase()

    def draw(self, lines: Sequence[str], above: str = "") -> None:
        """Show `lines`, each of fewer cells than the terminal has columns. `above` is text that stays, before them."""
        if not lines and not above and not self._is_drawn:
            return
        up = f"\x1b[{len(lines) - 1}A" if len(lines) > 1 else ""
        seen = _HIDE if lines else _SHOW
        # In one piece, so that nothing flickers, and nothing else is written in between.
        self._write(f"{seen}\r{_ERASE_BELOW}{above}" + "\n".join(lines) + f"{up}\r")
        self._is_drawn = bool(lines)

    def erase(self) -> None:
        """Show nothing."""
        self.draw(())

    def _write(self, text: str) -> None:
        with suppress(OSError, ValueError):  # a terminal that is gone is no reason to end
            self._file.write(text)
            self._file.flush()
