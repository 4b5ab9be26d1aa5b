"""The chat on standard input and output: a terminal on both sides, or lines in and text out."""

import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from hybrid.chat.commands import is_command, left_out_line, run_command, status_line
from hybrid.chat.conversation import Conversation
from hybrid.errors import OffloadError, UsageError
from hybrid.show.console import ctrl_c_stops, emit, say
from hybrid.show.wrapping import fold
from hybrid.text.generate import StopReason
from offload.printable import printable

if TYPE_CHECKING:
    from hybrid.chat.reply import Reply

DONE, FAILED, INTERRUPTED = 0, 2, 128 + signal.SIGINT

Notice = Callable[[str], None]


def chat(conversation: Conversation, model: str = "", history: Path | None = None) -> int:
    """Talk until the user leaves; gives the exit code. `model` is its name, for saved conversations.

    `history` is the file that keeps what was typed at a terminal, ~/.local/state/hybrid-run/history by default.

    Lines of standard input are turns when either side is no terminal: replies go to standard output, all else to
    standard error, and the exit code tells whether each line could be answered.
    """
    if sys.stdin.isatty() and sys.stdout.isatty():
        return _talk(conversation, model, history)
    return _answer_lines(conversation, model)


def _default_history() -> Path | None:
    """None for a user without a home."""
    try:
        return Path.home() / ".local" / "state" / "hybrid-run" / "history"
    except RuntimeError:
        return None


def _talk(conversation: Conversation, model: str, history: Path | None) -> int:
    from rich.console import Console

    from hybrid.chat.terminal_input import CtrlCOnEmptyInput, Prompter
    from hybrid.chat.terminal_reply import quiet_keyboard, show_reply

    console = Console(highlight=False, markup=False, emoji=False)

    def notice(text: str) -> None:
        console.print(printable(text), style="dim")

    def answer(reply: "Reply") -> None:
        with quiet_keyboard(sys.stdin), ctrl_c_stops(reply):
            show_reply(console, reply)
        console.print(fold(status_line(reply.stats), console.width), style="dim")
        if not reply.said_something:
            notice("stopped before the first word; the message is taken back")

    prompter = Prompter(history or _default_history())
    notice("/help shows the commands, Ctrl-D leaves")
    while True:
        console.print()
        try:
            line = prompter.read()
        except CtrlCOnEmptyInput:
            notice("Ctrl-D or /exit leaves")
            continue
        except EOFError:
            return DONE
        try:
            if not _turn(conversation, line, model, notice, answer):
                return DONE
        except OffloadError as error:
            console.print(f"error: {error}", style="red")


def _answer_lines(conversation: Conversation, model: str) -> int:
    failed = interrupted = False

    def answer(reply: "Reply") -> None:
        nonlocal interrupted
        with ctrl_c_stops(reply):
            _write(reply)
        say(status_line(reply.stats))
        interrupted = reply.stats.stop_reason is StopReason.INTERRUPTED

    for line in _lines(sys.stdin):
        try:
            if not _turn(conversation, line, model, say, answer):
                break
        except OffloadError as error:
            say(f"error: {error}")
            failed = True
        if interrupted:
            return INTERRUPTED
    return FAILED if failed else DONE


def _turn(conversation: Conversation, line: str, model: str, notice: Notice, answer: Callable[["Reply"], None]) -> bool:
    """One line of the user; gives whether to go on."""
    if not line.strip():
        return True
    if is_command(line):
        outcome = run_command(conversation, line, model)
        if outcome.text:
            notice(outcome.text)
        if outcome.leave:
            return False
        reply = outcome.reply
    else:
        reply = conversation.send(line)
    if reply is not None:
        if (more := reply.prompt.left_out - conversation.left_out) > 0:
            notice(left_out_line(more))
        answer(reply)
    return True


def _lines(file: TextIO) -> Iterator[str]:
    """Lines of a file; one that ends in a backslash goes on in the next."""
    held = ""
    while line := _read_line(file):
        held += line.removesuffix("\n")
        if held.endswith("\\"):
            held = held[:-1] + "\n"
            continue
        yield held
        held = ""
    if held:
        yield held


def _read_line(file: TextIO) -> str:
    try:
        return file.readline()
    except UnicodeDecodeError:
        raise UsageError("standard input is not UTF-8") from None


def _write(reply: "Reply") -> None:
    """Write a reply as it comes, and end it with a newline."""
    begun, last = False, ""
    try:
        for piece in reply:
            text = piece if begun else piece.lstrip()  # many models begin with a space
            if text:
                begun, last = True, text
                emit(text)
    finally:
        emit("" if last.endswith("\n") else "\n")
