"""Standard output and standard error, for the commands: results on the one, everything for people on the other."""

import os
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Protocol, TextIO

from hybrid.errors import ArgumentsError, UsageError
from hybrid.show.wrapping import fold
from offload.printable import printable

_MAX_PROMPT_BYTES = 1 << 26

_USUAL_SIZE = 80, 24  # where a terminal does not know its own


def say(text: str) -> None:
    """Write lines for people, broken at words where a terminal shows them; names in them may be a stranger's."""
    shown = printable(text)
    print(fold(shown, width(sys.stderr)) if sys.stderr.isatty() else shown, file=sys.stderr, flush=True)


def tell_program(line: str) -> None:
    """Write a line for programs to standard error, as it is."""
    print(line, file=sys.stderr, flush=True)


def say_bug(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Write the traceback of a bug as Python does (`sys.excepthook`), but its text may be a stranger's."""
    say("".join(traceback.format_exception(kind, error, trace)).rstrip("\n"))


def note_between(line: str) -> None:
    """Write a note for people while a result is under way; where a terminal shows both, on a line of its own."""
    say(f"\nnote: {line}" if sys.stdout.isatty() and sys.stderr.isatty() else f"note: {line}")


def emit(text: str) -> None:
    """Write a result to standard output at once: as it is, but to a terminal only what that would show.

    Raises OutputLostError when it cannot be written, BrokenPipeError (see `hybrid.cli.standard_streams`).
    """
    print(printable(text) if sys.stdout.isatty() else text, end="", flush=True)


def width(file: TextIO) -> int:
    """Columns to write tables in: the terminal's, or enough for them when it goes to a file."""
    return terminal_size(file)[0] if file.isatty() else 120


def terminal_size(file: TextIO) -> tuple[int, int]:
    """Columns and rows of the terminal that `file` is, as they are now; COLUMNS and LINES win."""
    try:
        columns, rows = os.get_terminal_size(file.fileno())
    except (OSError, ValueError):
        columns, rows = 0, 0
    given = [os.environ.get(name, "") for name in ("COLUMNS", "LINES")]
    asked = [int(text) if text.isdecimal() and len(text) < 6 else 0 for text in given]
    return asked[0] or columns or _USUAL_SIZE[0], asked[1] or rows or _USUAL_SIZE[1]


def can_redraw(file: TextIO) -> bool:
    """Tell whether `file` is a terminal with a cursor that can be moved."""
    return file.isatty() and os.environ.get("TERM", "dumb") not in ("dumb", "unknown", "")


def prompt_text(prompt: str | None, file: Path | None) -> str:
    """The prompt, from where it is given. Raises UsageError."""
    if (prompt is None) == (file is None):
        raise ArgumentsError("give one PROMPT: as an argument, as - for standard input, or with --file")
    if file is not None:
        return _read_text("--file", file)
    return _read_stdin() if prompt == "-" else str(prompt)


def _read_stdin() -> str:
    """All of standard input, without the newline that ends it. Raises UsageError when it is no text, or has no end."""
    try:
        return _text_of("standard input", sys.stdin.buffer)
    except OSError as error:
        raise UsageError(f"standard input cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"standard input is not UTF-8 at byte {error.start}") from None


def _read_text(flag: str, path: Path) -> str:
    """The text of a file named by `flag`, without the line end that ends it. Raises UsageError."""
    try:
        with path.open("rb") as content:  # a pipe too: --file <(command)
            return _text_of(f"{flag} {path}", content)
    except OSError as error:
        raise UsageError(f"{flag} {path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"{flag} {path} is not UTF-8 at byte {error.start}") from None


def _text_of(what: str, content: BinaryIO) -> str:
    """The text in UTF-8 as people mean it: no byte-order mark, line ends of Windows as others, none at the end.

    Raises UsageError for more than any prompt, UnicodeDecodeError and OSError.
    """
    text = content.read(_MAX_PROMPT_BYTES + 1)
    if len(text) > _MAX_PROMPT_BYTES:
        raise UsageError(f"{what} has more than {_MAX_PROMPT_BYTES} bytes, which no model reads")
    return text.decode("utf-8-sig").replace("\r\n", "\n").removesuffix("\n")


def check_writable(flag: str, path: Path) -> None:
    """Refuse a file that could not be written at the end, before the work rather than after it."""
    new = not os.path.lexists(path)
    try:
        path.open("ab").close()
        if new:
            path.unlink()
    except OSError as error:
        raise not_writable(flag, path, error) from None


def not_writable(flag: str, path: Path, error: OSError) -> UsageError:
    """The error for a file named by `flag` that cannot be written."""
    return UsageError(f"{flag} {path} cannot be written: {error.strerror}")


class Stoppable(Protocol):
    """Something that can be asked to end."""

    def stop(self) -> None:
        """End after the step that runs; called from a signal handler."""


@contextmanager
def ctrl_c_stops(text: Stoppable) -> Iterator[None]:
    """The first Ctrl-C ends the text after the step that runs; a second one ends the program."""

    def stop(signal_number: int, frame: object) -> None:
        text.stop()
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
