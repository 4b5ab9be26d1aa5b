"""The commands that begin with a slash."""

from pathlib import Path

import pytest

from hybrid.chat.commands import COMMANDS, is_command, run_command
from hybrid.chat.conversation import RETRY_TEMPERATURE
from hybrid.errors import UsageError
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


def test_set_changes_how_replies_are_made(talk: Talk) -> None:
    conversation, _ = talk("one", "two")

    def command(line: str) -> str:
        return run_command(conversation, line).text

    command("/set temperature 0.5")
    command("/set max-tokens=7")
    command("/set top_k 3")
    assert (conversation.rules.sampling.temperature, conversation.rules.sampling.top_k) == (0.5, 3)
    assert conversation.rules.max_tokens == 7
    assert "temperature 0.5\n" in command("/set")
    command("/set system be brief")
    assert conversation.system == "be brief"
    before = conversation.rules
    for line, said_to_be in (
        ("/set temperature hot", "a number, not hot"),
        ("/set temperature", "not nothing"),
        ("/set temperature -1", "not -1.0"),
        ("/set top-p 2", "at most 1"),
        ("/set top-k 1.5", "whole number"),
        ("/set max-tokens 0", "from 1 up"),
        ("/set temprature 1", "did you mean temperature?"),
        ("/set context 1", "there are temperature"),
    ):
        with pytest.raises(UsageError) as error:
            command(line)
        assert said_to_be in str(error.value)
    assert conversation.rules == before


def test_a_retry_at_temperature_0_is_drawn(talk: Talk) -> None:
    conversation, _ = talk("one", "two", "three")
    said(conversation.send("a"))
    assert str(RETRY_TEMPERATURE) in run_command(conversation, "/retry").text
    assert conversation.rules.sampling.temperature == 0
    run_command(conversation, "/set temperature 0.5")
    assert run_command(conversation, "/retry").text == ""


@pytest.mark.parametrize(
    ("line", "expected"),
    [("/help", True), ("/", True), ("/save a b", True), ("/etc/hosts is what?", False), (" /help", False)],
)
def test_what_is_a_command(line: str, expected: bool) -> None:
    assert is_command(line) is expected
