"""The commands that begin with a slash."""

from pathlib import Path

import pytest

from hybrid.chat.commands import COMMANDS, is_command, run_command
from tests.chat.recorder import Talk, said


def test_commands(talk: Talk, tmp_path: Path) -> None:
    conversation, _ = talk("one", "two", "three")
    said(conversation.send("a cat"))

    def command(line: str) -> str:
        return run_command(conversation, line).text

    assert command("/undo") == "taken back: a cat"
    assert command("/system") == "there is no system message; /system TEXT sets one"
    assert command("/system be brief") == "system message set"
    assert command("/system") == "be brief"
    assert command("/system -") == "system message removed"
    said(conversation.send("a dog"))
    reply = run_command(conversation, "/retry").reply
    assert reply is not None
    assert said(reply) == "three"
    assert command("/stats").startswith("2 messages · context ")
    assert command(f"/save {tmp_path / 'a chat.json'}").startswith("2 messages saved to ")
    assert command("/save") == "/save needs the name of a file"
    assert command("/clear") == "the conversation is forgotten"
    assert command(f"/load {tmp_path / 'a chat.json'}") == "2 messages loaded"
    assert command("/sav x") == "there is no /sav; did you mean /save?"
    assert command("/xyzzy") == "there is no /xyzzy; /help shows what there is"
    assert all(name in command("/help") for name in COMMANDS)
    assert run_command(conversation, "/exit").leave


@pytest.mark.parametrize(
    ("line", "expected"),
    [("/help", True), ("/", True), ("/save a b", True), ("/etc/hosts is what?", False), (" /help", False)],
)
def test_what_is_a_command(line: str, expected: bool) -> None:
    assert is_command(line) is expected
