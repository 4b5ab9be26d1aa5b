"""Conversations on an engine that recites and writes down what it was asked: which tokens run, which are kept."""

import itertools
from collections.abc import Sequence

import pytest

from hybrid.chat.commands import status_line
from hybrid.chat.conversation import Completion, Conversation
from hybrid.chat.reply import ReplyRules
from hybrid.errors import ContextFullError, UsageError
from hybrid.text.chat_template import ChatTemplate, Message
from hybrid.text.generate import StopReason
from hybrid.text.sampling import SamplingSettings
from hybrid.text.tokenizer import Tokenizer
from tests.chat.recorder import Recorder, Talk, said, whole
from tests.fakes import EOS

EMOJI = "naïve 🎉 — 猫は座った"


def test_a_second_turn_runs_only_what_is_new(talk: Talk, tokenizer: Tokenizer, chatml: ChatTemplate) -> None:
    conversation, engine = talk("the mat", EMOJI)
    assert said(conversation.send("the cat?")) == "the mat"
    assert engine.prefilled == [whole(tokenizer, chatml, "the cat?")]
    held = list(engine.cache)
    assert said(conversation.send("and the dog?")) == EMOJI
    new = "<|im_end|>\n<|im_start|>user\nand the dog?<|im_end|>\n<|im_start|>assistant\n"
    assert engine.prefilled[1] == tokenizer.encode(new, add_bos=False, parse_special=True)
    assert engine.cache[: len(held)] == held
    assert [message.content for message in conversation.messages] == ["the cat?", "the mat", "and the dog?", EMOJI]
    stats = conversation.last_stats
    assert stats is not None
    assert (stats.reused_tokens, stats.prefilled_tokens) == (len(held), len(engine.prefilled[1]))
    assert (stats.stop_reason, stats.context_used) == (StopReason.END, engine.position)


def test_ids_are_kept_as_they_were_generated(talk: Talk, tokenizer: Tokenizer) -> None:
    letters = [tokenizer.encode(letter, add_bos=False)[0] for letter in "cat"]
    assert letters != tokenizer.encode("cat", add_bos=False)
    conversation, engine = talk(letters, "yes")
    assert said(conversation.send("who sat?")) == "cat"
    held = list(engine.cache)
    assert held[-3:] == letters
    said(conversation.send("really?"))
    assert engine.cache[: len(held)] == held


def test_a_template_that_shows_the_past_otherwise(talk: Talk, tokenizer: Tokenizer, chatml: ChatTemplate) -> None:
    class Forgets:
        """Leaves the thoughts of earlier replies out, as templates of reasoning models do."""

        def render(self, messages: Sequence[Message], add_generation_prompt: bool = True) -> str:
            kept = [Message(message.role, message.content.split("##")[-1]) for message in messages]
            return chatml.render(kept, add_generation_prompt)

    conversation, engine = talk("a thought##the mat", "yes", template=Forgets())
    said(conversation.send("the cat?"))
    first = len(engine.prefilled[0])
    said(conversation.send("really?"))
    prompt = whole(tokenizer, chatml, "the cat?", "the mat", "really?")
    assert engine.cache[: len(prompt)] == prompt
    assert conversation.last_stats is not None
    assert conversation.last_stats.reused_tokens >= first


def test_undo_and_another_question(talk: Talk, tokenizer: Tokenizer, chatml: ChatTemplate) -> None:
    conversation, engine = talk("one", "two", "three")
    said(conversation.send("the first"))
    after_first = list(engine.cache)
    said(conversation.send("the second"))
    assert conversation.undo() == "the second"
    said(conversation.send("something else"))
    assert engine.trims[-1] >= len(after_first)
    prompt = whole(tokenizer, chatml, "the first", "one", "something else")
    assert engine.cache[: len(prompt)] == prompt
    assert [message.content for message in conversation.messages] == ["the first", "one", "something else", "three"]
    conversation.undo()
    conversation.undo()
    with pytest.raises(UsageError, match="nothing to undo"):
        conversation.undo()


def test_retry_runs_one_token_of_the_prompt_again(talk: Talk) -> None:
    conversation, engine = talk("one", "two", "three")
    with pytest.raises(UsageError, match="nothing to retry"):
        conversation.retry()
    said(conversation.send("the cat?"))
    said(conversation.send("the mat?"))
    prompt = engine.prefilled[-1]
    assert said(conversation.retry()) == "three"
    assert engine.prefilled[-1] == prompt[-1:]
    assert [message.content for message in conversation.messages] == ["the cat?", "one", "the mat?", "three"]


def test_a_retry_of_an_earlier_turn_keeps_its_generated_ids(talk: Talk, tokenizer: Tokenizer) -> None:
    letters = [tokenizer.encode(letter, add_bos=False)[0] for letter in "cat"]
    conversation, engine = talk(letters, "two", "three", "four")
    for text in "abc":
        said(conversation.send(text))
    conversation.undo()
    assert said(conversation.retry()) == "four"
    assert len(engine.prefilled[-1]) == 1
    assert any(engine.cache[start : start + 3] == letters for start in range(len(engine.cache)))


def test_each_retry_draws_with_another_seed(tokenizer: Tokenizer, chatml: ChatTemplate) -> None:
    engine = Recorder([])
    rules = ReplyRules(SamplingSettings(temperature=500.0, seed=3), 20, ())
    conversation = Conversation(engine, tokenizer, chatml, rules)
    replies = [said(conversation.send("a")), said(conversation.retry()), said(conversation.retry())]
    assert len(set(replies)) == 3
    conversation.clear()
    assert said(conversation.send("a")) == replies[0]


def test_clear_keeps_the_system_message(talk: Talk) -> None:
    conversation, _ = talk("one", "two", system="be brief")
    said(conversation.send("the cat?"))
    conversation.clear()
    assert conversation.messages == ()
    said(conversation.send("a dog?"))
    assert conversation.last_stats is not None
    assert conversation.last_stats.reused_tokens > len("be brief") / 4  # the system message was not run again


def test_a_new_system_message_is_seen_from_the_next_turn(
    talk: Talk, tokenizer: Tokenizer, chatml: ChatTemplate
) -> None:
    conversation, engine = talk("one", "two")
    said(conversation.send("the cat?"))
    conversation.system = "be brief"
    said(conversation.send("a dog?"))
    rendered = chatml.render([Message("system", "be brief"), *conversation.messages[:-1]])
    prompt = tokenizer.encode(rendered, add_bos=False, parse_special=True)
    assert engine.cache[: len(prompt)] == prompt


def test_a_full_context_leaves_the_oldest_turns_out_once(talk: Talk, tokenizer: Tokenizer) -> None:
    conversation, engine = talk(*["the mat"] * 12, context=300, system="be brief", max_tokens=30)
    left_out = []
    for number in range(12):
        reply = conversation.send(f"the cat {number}")
        left_out.append(reply.prompt.left_out)
        assert said(reply) == "the mat"
        assert len(reply.prompt.ids) + 30 <= 300
        assert reply.prompt.rendered.startswith("<|im_start|>system\nbe brief")
    assert left_out[0] == 0
    assert left_out[-1] > 0
    times = sum(before != after for before, after in itertools.pairwise(left_out))
    assert times <= 3, left_out  # not at every turn
    assert len(conversation.messages) == 24  # they are all still there
    full = left_out.index(next(count for count in left_out if count))
    assert len(engine.prefilled[full]) > len(engine.prefilled[full + 1])  # filled anew, then kept again


def test_a_message_that_never_fits_changes_nothing(talk: Talk) -> None:
    conversation, engine = talk("one", "two", context=100)
    said(conversation.send("a cat"))
    held, messages = list(engine.cache), conversation.messages
    with pytest.raises(ContextFullError, match=r"this message would take \d+ of the 100 tokens"):
        conversation.send("the cat sat on the mat " * 40)
    assert (engine.cache, conversation.messages, conversation.left_out) == (held, messages, 0)
    said(conversation.send("a dog"))
    assert conversation.last_stats is not None
    assert conversation.last_stats.reused_tokens == len(held)


@pytest.mark.parametrize("may_grow", [True, False])
def test_a_larger_context_is_advised_only_where_there_can_be_one(talk: Talk, may_grow: bool) -> None:
    conversation, engine = talk("one", context=100)
    engine.context_may_grow = may_grow
    with pytest.raises(ContextFullError) as caught:
        conversation.send("the cat sat on the mat " * 40)
    assert ("--context" in str(caught.value)) == may_grow


def test_a_reply_that_fills_the_context_says_so(talk: Talk) -> None:
    conversation, _ = talk([7] * 500, "two", context=100, max_tokens=500)
    said(conversation.send("a cat"))
    assert conversation.last_stats is not None
    assert conversation.last_stats.stop_reason is StopReason.CONTEXT
    assert "context full" in status_line(conversation.last_stats)
    said(conversation.send("a dog"))
    assert conversation.left_out == 2


def test_stop_words_end_a_reply_and_are_not_shown(talk: Talk, tokenizer: Tokenizer, chatml: ChatTemplate) -> None:
    conversation, engine = talk("the cat STOP the mat", "two", stop_words=("STOP",))
    assert said(conversation.send("who?")) == "the cat "
    assert conversation.last_stats is not None
    assert conversation.last_stats.stop_reason is StopReason.STOP_WORD
    engine.replies = [[EOS]]
    said(conversation.send("go on"))
    prompt = whole(tokenizer, chatml, "who?", "the cat ", "go on")
    assert engine.cache[: len(prompt)] == prompt


def test_without_a_template_the_text_is_continued(talk: Talk, tokenizer: Tokenizer) -> None:
    conversation, engine = talk(" there was", "two", template=Completion())
    assert said(conversation.send("once upon a time")) == " there was"
    held = list(engine.cache)
    assert engine.prefilled[0] == tokenizer.encode("once upon a time")
    said(conversation.send("a cat"))
    assert conversation.last_stats is not None
    assert conversation.last_stats.reused_tokens == len(held)
    assert tokenizer.decode(engine.cache).startswith("once upon a time there was\na cat")


def test_a_blank_message_is_refused(talk: Talk) -> None:
    with pytest.raises(UsageError, match="nothing to send"):
        talk()[0].send(" \n")
