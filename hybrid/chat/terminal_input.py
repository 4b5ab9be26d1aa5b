"""Reads what the user types: several lines, history, completion of commands (the only importer of prompt_toolkit)."""

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

from hybrid.chat.commands import COMMANDS


class CtrlCOnEmptyInput(Exception):
    """Ctrl-C with nothing typed."""


class Prompter:
    """Reads what the user types. Enter sends; Alt-Enter, or a backslash at the end, begins a new line."""

    def __init__(self, history: Path | None) -> None:
        self._session: PromptSession[str] = PromptSession(
            [("bold ansigreen", "> ")],
            multiline=True,
            prompt_continuation="  ",
            history=_open_history(history),
            completer=_Commands(),
            complete_while_typing=True,
            key_bindings=_keys(),
            reserve_space_for_menu=4,
        )

    def read(self) -> str:
        """Read a text. Raises CtrlCOnEmptyInput, or EOFError for Ctrl-D; both only when nothing is typed."""
        return self._session.prompt()


class _Commands(Completer):
    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
        typed = document.text
        if typed.startswith("/") and not any(character.isspace() for character in typed):
            for name, (argument, what) in COMMANDS.items():
                if name.startswith(typed):
                    shown = f"{name} {argument}".strip()
                    yield Completion(name, -len(typed), display=shown, display_meta=what)


class _QuietFileHistory(FileHistory):
    """A history that a full disk does not end the chat."""

    def store_string(self, string: str) -> None:
        with suppress(OSError, UnicodeError):
            super().store_string(string)


def _open_history(path: Path | None) -> History:
    """The history in a file of the user's own, made if need be; in memory when that cannot be."""
    if path is None:
        return InMemoryHistory()
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.touch(mode=0o600)
        path.open("rb").close()
    except OSError:
        return InMemoryHistory()
    return _QuietFileHistory(str(path))


def _keys() -> KeyBindings:
    keys = KeyBindings()

    @keys.add("enter")
    def _(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if buffer.document.current_line_before_cursor.endswith("\\") and not buffer.document.current_line_after_cursor:
            buffer.delete_before_cursor()
            buffer.insert_text("\n")
        else:
            buffer.validate_and_handle()

    @keys.add("escape", "enter")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    @keys.add("c-c")
    def _(event: KeyPressEvent) -> None:
        if event.current_buffer.text:
            event.current_buffer.reset()
        else:
            event.app.exit(exception=CtrlCOnEmptyInput())

    return keys
