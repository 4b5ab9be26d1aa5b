"""One model, used by threads, asyncio tasks, half-read streams and conversations: each gets what it would get alone."""

import asyncio
import json
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from hybrid import TextModel, load
from hybrid.chat.conversation import Completion, Conversation
from hybrid.chat.reply import ReplyRules
from hybrid.errors import EngineError, OffloadError, SupersededError, UsageError
from hybrid.text.sampling import SamplingSettings
from tests.parity.test_golden_tokens import DEMO_GOLDEN

PROMPTS = ("Once upon a time", "The cat", "A big dog", "One day")
TOKENS = 12


@pytest.fixture(scope="module")
def model() -> Iterator[TextModel]:
    with load(context_tokens=160, threads=2) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def alone(model: TextModel) -> dict[str, str]:
    return {prompt: model.generate(prompt, max_tokens=TOKENS) for prompt in PROMPTS}


def golden(model: TextModel) -> bool:
    """Check that the model says what it has to."""
    content = json.loads(DEMO_GOLDEN.read_text())
    generation, _ = model.begin(content["prompt_ids"], SamplingSettings(), 12)
    return list(generation) == content["greedy_ids"][:12]


def test_threads_and_tasks_get_the_texts_of_one_alone(model: TextModel, alone: dict[str, str]) -> None:
    def texts(first: int) -> list[tuple[str, str]]:
        order = [PROMPTS[(first + number) % len(PROMPTS)] for number in range(3)]
        whole = [(prompt, model.generate(prompt, max_tokens=TOKENS)) for prompt in order]
        return whole + [(prompt, "".join(model.stream(prompt, max_tokens=TOKENS))) for prompt in order]

    async def task(first: int) -> list[tuple[str, str]]:
        prompt, pieces = PROMPTS[first], []
        for piece in model.stream(prompt, max_tokens=TOKENS):
            pieces.append(piece)
            await asyncio.sleep(0)
        return [(prompt, "".join(pieces)), *await asyncio.to_thread(texts, first)]

    async def tasks() -> list[list[tuple[str, str]]]:
        return await asyncio.gather(task(0), task(1))

    with ThreadPoolExecutor(4) as pool:
        futures = [pool.submit(texts, number) for number in range(4)]
        found = asyncio.run(tasks()) + [future.result() for future in futures]
    assert [text for run in found for text in run if text[1] != alone[text[0]]] == []
    assert sum(map(len, found)) == 4 * 6 + 2 * 7


def test_a_second_text_supersedes_the_stream_of_the_main_thread(model: TextModel, alone: dict[str, str]) -> None:
    stream = model.stream(PROMPTS[0], max_tokens=TOKENS)
    next(stream)
    assert model.generate(PROMPTS[1], max_tokens=TOKENS) == alone[PROMPTS[1]]
    with pytest.raises(SupersededError):
        "".join(stream)


def test_a_stream_that_is_left_frees_the_model(model: TextModel, alone: dict[str, str]) -> None:
    stream = model.stream(PROMPTS[0], max_tokens=TOKENS)
    next(stream)
    del stream
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(model.generate, PROMPTS[1], max_tokens=TOKENS).result() == alone[PROMPTS[1]]


def test_stop_words_and_limits_are_told_of_what_was_given(model: TextModel, alone: dict[str, str]) -> None:
    word = alone[PROMPTS[0]].split()[2]
    text = model.generate(PROMPTS[0], max_tokens=TOKENS, stop=[word])
    assert alone[PROMPTS[0]].startswith(text)
    assert word not in text
    stats = model.last_stats
    assert stats is not None
    assert stats.stop_reason == "stop_word"
    assert len(stats.step_s) == stats.generated_tokens - 1


def test_a_conversation_goes_on_after_others_have_used_the_model(model: TextModel) -> None:
    rules = ReplyRules(SamplingSettings(), max_tokens=8)

    def talk(between: bool) -> list[str]:
        conversation = Conversation(model.engine, model.tokenizer, Completion(), rules)
        replies = ["".join(conversation.send("Once upon a time"))]
        if between:
            model.generate(PROMPTS[1], max_tokens=TOKENS)
        return [*replies, "".join(conversation.send("Then the cat"))]

    assert talk(between=True) == talk(between=False)


def test_a_model_can_be_closed_while_others_use_it() -> None:
    model = load(context_tokens=160, threads=2)
    begun, closed = threading.Event(), threading.Event()

    def read() -> None:
        for _ in model.stream(PROMPTS[0], max_tokens=150, temperature=1.0, seed=1):
            begun.set()
            closed.wait()

    with ThreadPoolExecutor(2) as pool:
        reader, closer = pool.submit(read), pool.submit(lambda: begun.wait() and model.close())
        closer.result()
        closed.set()
        assert isinstance(reader.exception(), EngineError)
    with pytest.raises(UsageError, match="closed"):
        model.generate(PROMPTS[0])


@pytest.mark.parametrize("count", [0, 1, 7, 19, 40])
def test_ctrl_c_between_two_levels_leaves_a_model_that_works(
    model: TextModel, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    checks = iter(range(10_000))
    executor: Any = model.engine._executor
    run, released = executor.run, threading.Event()

    def interrupted(new_tokens: int, inputs: object, check: Any) -> object:
        def counted() -> None:
            if next(checks) == count:
                os.kill(os.getpid(), signal.SIGINT)
                released.wait()
            check()

        return run(new_tokens, inputs, counted)

    with monkeypatch.context() as patch:
        patch.setattr(executor, "run", interrupted)
        with pytest.raises(KeyboardInterrupt):
            model.generate(PROMPTS[0], max_tokens=TOKENS)
        released.set()
    assert golden(model)


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, OffloadError])
def test_a_step_that_is_torn_anywhere_can_be_run_again(
    model: TextModel, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    prompt = json.loads(DEMO_GOLDEN.read_text())["prompt_ids"]
    model.engine.trim(0)
    expected = model.engine.prefill(prompt)
    kept = model.engine.decode(5).copy()
    executor: Any = model.engine._executor
    for number in range(len(executor._steps[1]._stations)):
        binding = executor._steps[1]._stations[number]._binding
        if binding is None:
            continue

        def tear(binding: Any = binding) -> None:
            binding._session.run_with_iobinding(binding._binding)
            raise error  # before the outputs are bound anew

        with monkeypatch.context() as patch:
            patch.setattr(binding, "run", tear)
            model.engine.trim(len(prompt))
            with pytest.raises(error):
                model.engine.decode(5)
        assert model.engine.position == len(prompt)
        assert (model.engine.decode(5) == kept).all()
    model.engine.trim(0)
    assert (model.engine.prefill(prompt) == expected).all()
    assert golden(model)
