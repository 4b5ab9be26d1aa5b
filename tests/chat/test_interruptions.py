"""Replies that do not come to their end: what was said is kept, and nothing runs twice."""

import pytest

from hybrid.errors import UsageError
from hybrid.text.chat_template import Message
from hybrid.text.generate import StopReason
from tests.chat.recorder import Talk, said
from tests.fakes import EOS


@pytest.mark.parametrize("stopped_at", [1, 3])
def test_an_interrupted_reply_is_kept_as_far_as_it_came(talk: Talk, stopped_at: int) -> None:
    conversation, engine = talk("the cat sat on the mat", "two")
    reply = conversation.send("who?")
    steps = iter(range(1, 100))
    engine.on_decode = lambda: reply.stop() if next(steps) == stopped_at else None
    text = said(reply)
    assert "the cat sat on the mat".startswith(text)
    assert conversation.messages[-1] == Message("assistant", text)
    assert reply.stats.stop_reason is StopReason.INTERRUPTED
    held = list(engine.cache)
    engine.replies, engine.on_decode = [[EOS]], lambda: None
    said(conversation.send("go on"))
    assert engine.cache[: len(held)] == held
    assert conversation.last_stats is not None
    assert conversation.last_stats.reused_tokens == len(held)


def test_an_interrupted_prompt_takes_the_message_back(talk: Talk) -> None:
    conversation, engine = talk("one", chunk=4)
    reply = conversation.send("the cat sat on the mat")
    assert next(reply) == ""
    assert reply.stats.prefilled_tokens == 4
    reply.stop()
    assert said(reply) == ""
    assert (conversation.messages, reply.said_something, engine.position) == ((), False, 4)
    engine.replies = [[EOS]]
    said(conversation.send("the cat sat on the mat"))
    assert conversation.last_stats is not None
    assert conversation.last_stats.reused_tokens == 4  # what had run is not lost


def test_an_interrupted_retry_leaves_the_old_reply(talk: Talk) -> None:
    conversation, _ = talk("one", "two")
    said(conversation.send("a cat"))
    before = conversation.messages
    reply = conversation.retry()
    reply.stop()
    said(reply)
    assert conversation.messages == before


def test_a_failure_in_the_middle_keeps_what_was_said(talk: Talk) -> None:
    text = "the cat sat on the mat"
    conversation, engine = talk(text)
    reply = conversation.send("who?")
    steps = iter(range(1, 100))

    def fail() -> None:
        if next(steps) == 3:
            raise UsageError("the bus is on strike")

    engine.on_decode = fail
    with pytest.raises(UsageError, match="strike"):
        said(reply)
    assert text.startswith(reply.text)
    assert conversation.messages == (Message("user", "who?"), Message("assistant", reply.text))
    held = list(engine.cache)
    engine.on_decode, engine.replies = lambda: None, [[EOS]]
    said(conversation.send("go on"))
    assert engine.cache[: len(held)] == held


def test_a_reply_that_is_left_alone_is_ended_by_the_next(talk: Talk) -> None:
    conversation, engine = talk("the cat sat on the mat")
    reply = conversation.send("who?")
    while not next(reply):
        pass
    engine.replies = [[EOS]]
    said(conversation.send("go on"))
    assert [message.role for message in conversation.messages] == ["user", "assistant"] * 2
    assert list(reply) == []
    conversation.send("never iterated")
    assert len(conversation.messages) == 4
