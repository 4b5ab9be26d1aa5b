"""Conversations on an engine that recites and writes down what it was asked: which tokens run, which are kept."""

import itertools
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from hybrid.chat.commands import COMMANDS, is_command, run_command, status_line
from hybrid.chat.conversation import Completion, Conversation, Template
from hybrid.chat.reply import Reply, ReplyRules
from hybrid.chat.saved import load
from hybrid.errors import ContextFullError, UsageError
from hybrid.text.chat_template import ChatTemplate, Message, load_chat_template
from hybrid.text.generate import StopReason
from hybrid.text.sampling import SamplingSettings
from hybrid.text.tokenizer import Tokenizer, load_tokenizer
from tests.fakes import EOS, VOCAB, train_json_tokenizer

EMOJI = "naïve 🎉 — 猫は座った"


class Recorder:
    """An engine that says its replies one after another, and remembers every call and what its cache holds."""

    def __init__(self, replies: Sequence[Sequence[int]], context_tokens: int = 2000) -> None:
        self.replies = [list(reply) for reply in replies]
        self.context_tokens = context_tokens
        self.cache: list[int] = []
        self.prefilled: list[list[int]] = []
        self.trims: list[int] = []
        self.on_decode: Callable[[], None] = lambda: None
        self.on_prefill: Callable[[], None] = lambda: None
        self._going: list[int] = []

    @property
    def position(self) -> int:
        return len(self.cache)

    def prefill(self, token_ids: Sequence[int]) -> npt.NDArray[np.float32]:
        assert token_ids
        assert self.position + len(token_ids) <= self.context_tokens
        self.on_prefill()
        self.cache += token_ids
        self.prefilled.append(list(token_ids))
        self._going = list(self.replies[0]) if self.replies else []
        return self._next()

    def decode(self, token_id: int) -> npt.NDArray[np.float32]:
        assert self.position < self.context_tokens
        self.on_decode()
        self.cache.append(token_id)
        return self._next()

    def trim(self, length: int) -> None:
        assert 0 <= length <= self.position
        self.trims.append(length)
        del self.cache[length:]

    def _next(self) -> npt.NDArray[np.float32]:
        logits = np.zeros(VOCAB, np.float32)
        logits[self._going.pop(0) if self._going else EOS] = 5.0
        if not self._going and self.replies:
            self.replies.pop(0)
        return logits


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_json_tokenizer(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def tokenizer(model: Path) -> Tokenizer:
    return load_tokenizer(model)


@pytest.fixture(scope="module")
def chatml(model: Path, tokenizer: Tokenizer) -> ChatTemplate:
    template = load_chat_template(model, tokenizer, "chatml")
    assert template is not None
    return template


Talk = Callable[..., tuple[Conversation, Recorder]]


@pytest.fixture
def talk(tokenizer: Tokenizer, chatml: ChatTemplate) -> Talk:
    """A conversation in chatml with a model that gives these replies."""

    def make(
        *replies: str | list[int],
        context: int = 2000,
        template: Template | None = None,
        system: str | None = None,
        max_tokens: int = 100,
        stop_words: tuple[str, ...] = (),
        chunk: int = 512,
    ) -> tuple[Conversation, Recorder]:
        ids = [
            [*(tokenizer.encode(reply, add_bos=False) if isinstance(reply, str) else reply), EOS] for reply in replies
        ]
        engine = Recorder(ids, context)
        rules = ReplyRules(SamplingSettings(), max_tokens, (EOS,), stop_words, chunk)
        return Conversation(engine, tokenizer, template or chatml, rules, system), engine

    return make


def said(reply: Reply) -> str:
    return "".join(reply)


def whole(tokenizer: Tokenizer, chatml: ChatTemplate, *contents: str, ask: bool = True) -> list[int]:
    """Ids of a conversation that never was anything else."""
    messages = [Message(("user", "assistant")[number % 2], content) for number, content in enumerate(contents)]
    return tokenizer.encode(chatml.render(messages, ask), add_bos=False, parse_special=True)


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


def test_a_reply_that_fills_the_context_says_so(talk: Talk) -> None:
    conversation, _ = talk([7] * 500, "two", context=100, max_tokens=500)
    said(conversation.send("a cat"))
    assert conversation.last_stats is not None
    assert conversation.last_stats.stop_reason is StopReason.CONTEXT
    assert "context full" in status_line(conversation.last_stats)
    said(conversation.send("a dog"))
    assert conversation.left_out == 2


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
