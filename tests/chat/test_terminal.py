"""The chat on a real pseudo-terminal and on pipes, around an engine that recites."""

import fcntl
import io
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from prompt_toolkit.completion import CompleteEvent
from prompt_toolkit.document import Document
from rich.console import Console

from hybrid.chat.commands import COMMANDS
from hybrid.chat.reply import Prompt, ReplyStats
from hybrid.chat.terminal_input import _Commands, _open_history
from hybrid.chat.terminal_reply import complete_blocks, show_reply
from tests.fakes import FakeEngine

ROOT = Path(__file__).parents[2]
EMOJI = "naïve 🎉 — 猫は座った"
DEADLINE_S = 20.0
UTF_8 = {**os.environ, "PYTHONUTF8": "1", "PYTHONIOENCODING": "utf-8:strict"}
ESCAPES = re.compile(r"\x1b(\[[0-9;?]*[ -/]*[@-~]|\][^\x07]*\x07|[()][A-Z0-9]|[=>])")
PROMPT = "\n> "  # as it looks without its colours
CTRL_C, CTRL_D, ALT_ENTER = "\x03", "\x04", "\x1b\r"


def app(folder: str, text: str, history: str, endless: bool, context_tokens: int) -> None:
    """The child: a chat with a model that says `text`."""
    from hybrid.chat.opening import find_template, open_conversation
    from hybrid.chat.terminal import chat
    from hybrid.text.open_tokenizer import load_tokenizer
    from hybrid.text.sampling import SamplingSettings

    if os.isatty(0):
        fcntl.ioctl(0, termios.TIOCSCTTY)  # so that Ctrl-C is a signal
    tokenizer = load_tokenizer(Path(folder))
    script = tokenizer.encode(text, add_bos=False)
    engine = FakeEngine(script * 10_000 if endless else script, context_tokens)
    engine.on_step = lambda step: time.sleep(0.001)  # slow enough to be interrupted in the middle
    template, _ = find_template(Path(folder), tokenizer, "chatml")
    sampling = SamplingSettings()
    conversation = open_conversation(engine, tokenizer, Path(folder), template, sampling, 10**6)  # type: ignore[arg-type]
    sys.exit(chat(conversation, "fake", Path(history)))


def command(model: Path, history: Path, text: str, endless: bool = False, context_tokens: int = 10**5) -> list[str]:
    code = (
        "from tests.chat.test_terminal import app; "
        f"app({str(model)!r}, {text!r}, {str(history)!r}, {endless}, {context_tokens})"
    )
    return [sys.executable, "-c", code]


class Terminal:
    """A person at a terminal: types, and waits for what appears."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._raw = b""
        self._seen = 0

    @property
    def shown(self) -> str:
        """All that was written, without escape sequences."""
        text = ESCAPES.sub("", self._raw.decode(errors="ignore"))
        return text.replace("\r", "")

    def wait_for(self, text: str) -> str:
        """Wait until `text` appears after what was waited for before; gives what came until then."""
        deadline_s = time.monotonic() + DEADLINE_S
        while (found := self.shown.find(text, self._seen)) < 0:
            assert self._read(deadline_s), f"no {text!r} in {self.shown[self._seen :]!r}"
        before, self._seen = self.shown[self._seen : found + len(text)], found + len(text)
        return before

    def type(self, keys: str) -> None:
        os.write(self._descriptor, keys.encode())

    def read_to_end(self) -> None:
        deadline_s = time.monotonic() + DEADLINE_S
        while self._read(deadline_s):
            pass

    def _read(self, deadline_s: float) -> bool:
        """Take what comes next; false at the end."""
        if not select.select([self._descriptor], [], [], max(deadline_s - time.monotonic(), 0.0))[0]:
            raise AssertionError(f"nothing more came after {self.shown[self._seen :]!r}")
        try:
            part = os.read(self._descriptor, 65536)
        except OSError:  # how Linux says that nobody has it open any more
            return False
        self._raw += part
        return bool(part)


@contextmanager
def started(
    arguments: Sequence[str], term: str = "xterm-256color"
) -> Iterator[tuple[Terminal, subprocess.Popen[bytes]]]:
    descriptor, side = pty.openpty()
    fcntl.ioctl(side, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))
    environment = {**os.environ, "TERM": term, "PROMPT_TOOLKIT_NO_CPR": "1", "LC_ALL": "C.UTF-8"}
    for name in ("COLUMNS", "LINES", "NO_COLOR"):
        environment.pop(name, None)
    process = subprocess.Popen(
        arguments, cwd=ROOT, stdin=side, stdout=side, stderr=side, env=environment, start_new_session=True
    )
    os.close(side)
    try:
        yield Terminal(descriptor), process
    finally:
        process.kill()
        process.wait()
        os.close(descriptor)


def test_two_turns_help_and_leaving(model: Path, tmp_path: Path) -> None:
    history = tmp_path / "state" / "history"
    with started(command(model, history, EMOJI)) as (terminal, process):
        terminal.wait_for(PROMPT)
        terminal.type("who sat?\r")
        assert EMOJI in terminal.wait_for("0 reused + ")
        terminal.wait_for(PROMPT)
        terminal.type("猫?" + ALT_ENTER + "two\\\rthree\r")
        answer = terminal.wait_for(" reused + ")
        assert EMOJI in answer
        assert not answer.endswith(" 0 reused + ")
        terminal.wait_for(PROMPT)
        terminal.type("/hlep\r")
        terminal.wait_for("did you mean /help?")
        terminal.wait_for(PROMPT)
        terminal.type("/help\r")
        terminal.wait_for("Ctrl-C ends a reply")
        terminal.wait_for(PROMPT)
        terminal.type(CTRL_C)
        terminal.wait_for("Ctrl-D or /exit leaves")
        terminal.wait_for(PROMPT)
        terminal.type("half a line" + CTRL_C + CTRL_D)
        terminal.read_to_end()
        assert process.wait(DEADLINE_S) == 0
        assert "Traceback" not in terminal.shown
    assert "+猫?\n+two\n+three\n" in history.read_text()
    assert "half a line" not in history.read_text()
    assert history.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    ("typed", "offered"),
    [("/", [*COMMANDS]), ("/cl", ["/clear"]), ("/xyzzy", []), ("/set top", []), ("", []), ("clear", [])],
)
def test_commands_are_offered_while_their_name_is_typed(typed: str, offered: list[str]) -> None:
    document = Document(typed)
    found = list(_Commands().get_completions(document, CompleteEvent(text_inserted=True)))
    assert [completion.text for completion in found] == offered
    assert {completion.start_position for completion in found} <= {-len(typed)}


def test_ctrl_c_ends_the_reply_and_not_the_chat(model: Path, tmp_path: Path) -> None:
    with started(command(model, tmp_path / "h", "the cat sat on the mat ", endless=True)) as (terminal, process):
        for _ in range(2):
            terminal.wait_for(PROMPT)
            terminal.type("who?\r")
            terminal.wait_for("the cat sat on the mat")
            terminal.type(CTRL_C)
            terminal.wait_for("interrupted")
        terminal.wait_for(PROMPT)
        terminal.type("/exit\r")
        terminal.read_to_end()
        assert process.wait(DEADLINE_S) == 0
        assert "Traceback" not in terminal.shown


def test_what_is_pasted_is_one_message(model: Path, tmp_path: Path) -> None:
    with started(command(model, tmp_path / "h", "yes")) as (terminal, _):
        terminal.wait_for(PROMPT)
        terminal.type("\x1b[200~one\ntwo\rthree\x1b[201~")
        terminal.type("\r")
        terminal.wait_for(" reused + ")
        terminal.wait_for(PROMPT)
        terminal.type("/stats\r")
        terminal.wait_for("2 messages")


def test_what_is_typed_during_a_reply_waits_for_the_prompt(model: Path, tmp_path: Path) -> None:
    with started(command(model, tmp_path / "h", "the cat sat on the mat " * 40)) as (terminal, _):
        terminal.wait_for(PROMPT)
        terminal.type("who?\r")
        terminal.wait_for("the cat sat")
        terminal.type("/stats\r")
        terminal.wait_for(" reused + ")
        terminal.wait_for("2 messages")


def test_errors_do_not_end_the_chat(model: Path, tmp_path: Path) -> None:
    with started(command(model, tmp_path / "h", "yes", context_tokens=60)) as (terminal, _):
        terminal.wait_for(PROMPT)
        terminal.type("the cat sat on the mat " * 10 + "\r")
        terminal.wait_for("error: this message would take")
        terminal.wait_for(PROMPT)
        terminal.type("/undo\r")
        terminal.wait_for("nothing to undo")
        terminal.wait_for(PROMPT)
        terminal.type("who?\r")
        terminal.wait_for("0 reused + ")


def test_a_terminal_that_cannot_redraw(model: Path, tmp_path: Path) -> None:
    with started(command(model, tmp_path / "h", f"**{EMOJI}**"), term="dumb") as (terminal, process):
        terminal.wait_for("> ")
        terminal.type("who?\r")
        assert f"**{EMOJI}**" in terminal.wait_for("0 reused + ")
        terminal.wait_for("> ")
        terminal.type("/exit\r")
        terminal.read_to_end()
        assert process.wait(DEADLINE_S) == 0


def piped(model: Path, tmp_path: Path, lines: str, text: str = EMOJI) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(model, tmp_path / "h", text, context_tokens=200), cwd=ROOT, input=lines, capture_output=True, text=True
    )


def test_lines_of_a_pipe_are_turns(model: Path, tmp_path: Path) -> None:
    done = piped(model, tmp_path, "one\n\ntwo\\\nmore\n/undo\n/nothing\n", f"**{EMOJI}**\n\n<b> \x1b[31m")
    assert done.stdout == f"**{EMOJI}**\n\n<b> \x1b[31m\n" * 2  # as it is: no markdown, nothing taken out
    assert "taken back: two more" in done.stderr
    assert done.returncode == 0
    assert not (tmp_path / "h").exists()


def test_a_line_that_cannot_be_answered_shows_in_the_exit_code(model: Path, tmp_path: Path) -> None:
    done = piped(model, tmp_path, "the cat sat on the mat " * 50 + "\nwho?")
    assert done.stdout == f"{EMOJI}\n"
    assert done.stderr.startswith("error: this message would take")
    assert done.returncode == 2


def test_input_that_is_not_utf_8(model: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        command(model, tmp_path / "h", "yes"), cwd=ROOT, input=b"caf\xe9\n", capture_output=True, env=UTF_8
    )
    assert b"UsageError: standard input is not UTF-8" in done.stderr  # the command line makes it one line


def test_a_history_that_cannot_be_kept_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    history = _open_history(tmp_path / "file" / "history")
    history.append_string("one")
    assert history.get_strings() == ["one"]


class Recited:
    """A reply that is known beforehand."""

    prompt = Prompt("once", [1], 0)
    stats = ReplyStats(0, 0, 0.0, 0, None, 0, 64, None)

    def __init__(self, text: str) -> None:
        self._pieces = iter(text)

    def __iter__(self) -> Iterator[str]:
        return self._pieces


DOCUMENT = """\
# A title

Text with **bold** and List<int> tags,
[a link](http://example.org/x) \x1b[2J.

{emoji}

- one
  - nested
- two

```python
a = "# no title"

b = 2
```

| a | b |
|---|---|
| 1 | 2 |

The end <b>.""".replace("{emoji}", EMOJI)


@pytest.mark.parametrize("height", [5, 50])
def test_markdown_comes_out_whole(height: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hybrid.chat.terminal_reply._REDRAW_S", 0.0)
    monkeypatch.setenv("TERM", "xterm-256color")
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=80, height=height)
    show_reply(console, Recited(DOCUMENT))  # type: ignore[arg-type]
    assert "\x1b[2J" not in file.getvalue()
    assert "reading 1 token …" in file.getvalue()
    final = ESCAPES.sub("", file.getvalue())
    for text in ("List<int> tags,", "http://example.org/x", EMOJI, "• nested", '"# no title"', "b = 2", "The end <b>."):
        assert text in final


def test_blocks_are_complete_only_when_another_has_begun() -> None:
    assert complete_blocks("one") == 0
    assert complete_blocks("one\n\ntw") == 0  # "tw" may yet become anything
    assert complete_blocks("one\n\ntwo\n") == len("one\n\n")
    assert complete_blocks("- one\n\n- two\n") == 0
    assert complete_blocks("```\na\n\nb\n") == 0
    assert complete_blocks("a\u2028b\n\nc\n") == len("a\u2028b\n\n")


def test_pieces_put_together_are_the_text() -> None:
    rest, blocks = "", []
    for character in DOCUMENT:
        rest += character
        if end := complete_blocks(rest):
            blocks.append(rest[:end])
            rest = rest[end:]
    assert "".join(blocks) + rest == DOCUMENT
    assert len(blocks) == 5  # the table could go on until the last line is at its end
