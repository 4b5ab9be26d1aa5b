"""Conversations in files: what is written, and what is no conversation."""

import json
from pathlib import Path

import pytest

from hybrid.chat.saved import load
from hybrid.errors import UsageError
from tests.chat.recorder import Talk, said

EMOJI = "naïve 🎉 — 猫は座った"


def test_saved_and_loaded(talk: Talk, tmp_path: Path) -> None:
    conversation, _ = talk(EMOJI, "two", system="be brief")
    said(conversation.send("猫?"))
    path = tmp_path / "chat.json"
    conversation.save(path, "tiny")
    conversation.save(path, "tiny")  # a conversation may be replaced
    assert [entry.name for entry in tmp_path.iterdir()] == ["chat.json"]
    assert json.loads(path.read_text())["messages"][1:] == [
        {"role": "user", "content": "猫?"},
        {"role": "assistant", "content": EMOJI},
    ]
    other, _ = talk("three")
    other.load(path)
    assert (other.system, other.messages) == (conversation.system, conversation.messages)
    assert said(other.send("more?")) == "three"


def test_another_file_is_not_replaced(talk: Talk, tmp_path: Path) -> None:
    path = tmp_path / "thesis.txt"
    path.write_text("years of work")
    with pytest.raises(UsageError, match="holds no conversation"):
        talk()[0].save(path)
    assert path.read_text() == "years of work"
    with pytest.raises(UsageError, match="cannot be written: No such file"):
        talk()[0].save(tmp_path / "absent" / "chat.json")


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("no json", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", "no saved conversation"),
        ('[{"role": "assistant", "content": "a"}]', "take turns"),
        ('[{"role": "user", "content": "a"}]', "no reply"),
        ('[{"role": "user"}]', "both text"),
        ('[{"role": "user", "content": "a"}, {"role": "system", "content": "a"}]', "take turns"),
    ],
)
def test_files_that_hold_no_conversation(content: str, why: str, tmp_path: Path, talk: Talk) -> None:
    path = tmp_path / "chat.json"
    if content.startswith('[{"'):
        content = f'{{"format": "hybrid-run conversation", "messages": {content}}}'
    path.write_text(content)
    with pytest.raises(UsageError, match=why):
        load(path)
    conversation, _ = talk("one")
    said(conversation.send("a"))
    before = conversation.messages
    with pytest.raises(UsageError, match=why):
        conversation.load(path)
    assert conversation.messages == before
