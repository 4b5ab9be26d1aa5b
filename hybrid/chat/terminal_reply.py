"""A reply on a terminal: markdown, while it comes."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar, TextIO

from markdown_it import MarkdownIt
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.markdown import Heading, Markdown, MarkdownElement
from rich.segment import Segment
from rich.text import Text

from hybrid.chat.reply import Reply
from hybrid.show.redrawn import RedrawnLines
from offload.printable import printable
from offload.spec.units import counted

_REDRAW_S = 0.06
_NARROWEST = 40  # columns that a terminal may be narrowed to without a line of the reply being seen twice


def show_reply(console: Console, reply: Reply) -> None:
    """Show a reply as it comes: as markdown, or as it is where lines cannot be redrawn."""
    if not console.is_terminal or console.is_dumb_terminal:
        _show_plain(console, reply)
    else:
        _show_markdown(console, reply)


def _show_plain(console: Console, reply: Reply) -> None:
    for piece in reply:
        console.file.write(printable(piece))
        console.file.flush()
    console.file.write("\n")


def _show_markdown(console: Console, reply: Reply) -> None:
    """Blocks that are complete are written for good; only the last one is redrawn, so that nothing flickers."""
    shown = 0  # characters that were written for good
    text = ""
    drawn_s = 0.0
    with RedrawnLines(console.file) as live:
        try:
            live.draw([_as_text(console, _reading(reply))])
            for piece in reply:
                text = (text + printable(piece)).lstrip("\n")
                if time.monotonic() - drawn_s < _REDRAW_S:
                    continue
                above = ""
                if end := complete_blocks(text[shown:]):
                    above = _as_text(console, _Lines(text[shown : shown + end], first=shown == 0))
                    shown += end
                tail = _Lines(text[shown:], first=shown == 0, fit_screen=True) if text else _reading(reply)
                live.draw(_as_text(console, tail).rstrip("\n").split("\n"), above)
                drawn_s = time.monotonic()
        finally:
            live.erase()
            if text[shown:].strip():
                console.print(_Lines(text[shown:], first=shown == 0), end="")


def _as_text(console: Console, shown: RenderableType) -> str:
    """Render as the console would, a column narrower: a full row may or may not move the cursor on."""
    with console.capture() as capture:
        console.print(shown, end="", width=max(console.width - 1, 1))
    return capture.get()


def complete_blocks(text: str) -> int:
    """Count the characters at the beginning that are markdown blocks which nothing further can change."""
    end = text.rfind("\n") + 1  # a line that is not at its end may yet become anything
    starts = [token.map[0] for token in _parser().parse(text[:end]) if token.level == 0 and token.map]
    if len(set(starts)) < 2:
        return 0
    return sum(len(line) + 1 for line in text[:end].split("\n")[: starts[-1]])


def _parser() -> MarkdownIt:
    """As rich reads markdown, but "<T>" is text: rich would leave it out."""
    return MarkdownIt("commonmark", {"html": False}).enable("strikethrough").enable("table")


class _LeftHeading(Heading):
    """rich centres titles, which suits pages."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        self.text.justify = "left"
        yield self.text


class _Block(Markdown):
    """Markdown that loses nothing: tags are shown, and so are the addresses of links."""

    elements: ClassVar[dict[str, type[MarkdownElement]]] = {**Markdown.elements, "heading_open": _LeftHeading}

    def __init__(self, text: str) -> None:
        super().__init__("", hyperlinks=False)
        self.markup = text
        self.parsed = _parser().parse(text)


class _Lines:
    """The lines of markdown blocks, with one empty line before them unless they are the first of a reply."""

    def __init__(self, text: str, first: bool, fit_screen: bool = False) -> None:
        self._text = text
        self._first = first
        self._fit_screen = fit_screen  # only the end: what has scrolled away cannot be redrawn

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        lines = console.render_lines(_Block(self._text), options, pad=False)
        while lines and _is_empty(lines[0]):
            del lines[0]
        while lines and _is_empty(lines[-1]):
            del lines[-1]
        if not self._first:
            lines.insert(0, [])
        for line in _end_of(lines, console.height - 1) if self._fit_screen else lines:
            yield from line
            yield Segment.line()


def _end_of(lines: list[list[Segment]], rows: int) -> list[list[Segment]]:
    """The last lines, as many as fit the rows of a screen, and would if it were made as narrow as it may be."""
    fitting: list[list[Segment]] = []
    for line in reversed(lines):
        rows -= max(-(-Segment.get_line_length(line) // _NARROWEST), 1)
        if rows < 0 and fitting:
            break
        fitting.insert(0, line)
    return fitting


def _is_empty(line: list[Segment]) -> bool:
    """Tell whether nothing is seen of a line; a background is."""
    return not any(segment.text.strip() or (segment.style and segment.style.bgcolor) for segment in line)


def _reading(reply: Reply) -> Text:
    stats = reply.stats
    left = len(reply.prompt.ids) - stats.reused_tokens - stats.prefilled_tokens
    return Text(f"reading {counted(left, 'token')} …" if left > 0 else "…", style="dim")


@contextmanager
def quiet_keyboard(file: TextIO) -> Iterator[None]:
    """Keys typed meanwhile are kept for the next prompt but not shown in the middle of the reply."""
    try:
        import termios

        before = termios.tcgetattr(file)
    except (ImportError, OSError, ValueError):
        yield
        return
    except Exception as error:  # termios.error is no OSError
        if type(error).__module__ != "termios":
            raise
        yield
        return
    quiet = [*before]
    quiet[3] = quiet[3] & ~termios.ECHO | termios.NOFLSH  # Ctrl-C would throw away what was typed ahead
    termios.tcsetattr(file, termios.TCSADRAIN, quiet)
    try:
        yield
    finally:
        termios.tcsetattr(file, termios.TCSADRAIN, before)
