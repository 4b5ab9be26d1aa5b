"""The generation loop, with an engine that recites."""

import itertools
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest

from hybrid.errors import ContextFullError, ModelError, UsageError
from hybrid.text.detokenizer import TextStream
from hybrid.text.generate import Generation, GenerationStats, StopReason, generate, generate_several, text_of
from hybrid.text.open_tokenizer import load_tokenizer
from hybrid.text.sampling import SamplingSettings
from hybrid.text.stop_words import StopWords
from hybrid.text.tokenizer import Tokenizer
from tests.fakes import EOS, FakeEngine, train_tokenizer

GREEDY = SamplingSettings()
PROMPT = [1, 5, 6]


def test_tokens_come_one_by_one_until_the_end_token() -> None:
    engine = FakeEngine([10, 11, 12])
    generation = generate(engine, PROMPT, GREEDY, 100, [EOS])
    assert engine.position == 0  # nothing runs before it is asked for
    assert next(generation) == 10
    assert (engine.position, engine.fed) == (3, [])
    assert generation.stats.stop_reason is None
    assert list(generation) == [11, 12]
    assert engine.fed == [10, 11, 12]
    stats = generation.stats
    assert (stats.stop_reason, stats.prompt_tokens, stats.generated_tokens) == (StopReason.END, 3, 3)
    assert len(stats.step_s) == 3


def test_any_of_the_stop_ids_ends_the_text() -> None:
    generation = generate(FakeEngine([10, 11, 12]), PROMPT, GREEDY, 100, [99, 11])
    assert list(generation) == [10]


def test_an_end_token_at_once_gives_no_text() -> None:
    generation = generate(FakeEngine([]), PROMPT, GREEDY, 100, [EOS])
    assert list(generation) == []
    assert generation.stats.stop_reason is StopReason.END
    assert generation.stats.time_to_first_token_s is None


def test_without_stop_ids_only_the_limits_end_it() -> None:
    assert list(generate(FakeEngine([10]), PROMPT, GREEDY, 3)) == [10, EOS, EOS]


def test_max_tokens_does_not_decode_the_last_one() -> None:
    engine = FakeEngine([10, 11, 12, 13])
    generation = generate(engine, PROMPT, GREEDY, 2, [EOS])
    assert list(generation) == [10, 11]
    assert engine.fed == [10]
    assert generation.stats.stop_reason is StopReason.MAX_TOKENS


@pytest.mark.parametrize(("context_tokens", "expected"), [(3, 1), (4, 2), (5, 3)])
def test_a_full_context_ends_the_text_after_one_last_token(context_tokens: int, expected: int) -> None:
    engine = FakeEngine([10] * 50, context_tokens)
    generation = generate(engine, PROMPT, GREEDY, 100, [EOS])
    assert list(generation) == [10] * expected
    assert engine.position == context_tokens
    assert generation.stats.stop_reason is StopReason.CONTEXT


def test_a_prompt_that_does_not_fit_is_the_engines_error() -> None:
    with pytest.raises(ContextFullError):
        next(generate(FakeEngine([10], context_tokens=2), PROMPT, GREEDY, 100))


def test_a_second_text_goes_on_from_the_cache() -> None:
    engine = FakeEngine([10, 11])
    assert list(generate(engine, PROMPT, GREEDY, 2, [EOS])) == [10, 11]
    assert list(generate(engine, [11, 7], GREEDY, 2, [EOS])) == [10, 11]
    assert engine.position == 3 + 1 + 2 + 1


def test_stop_ends_it_between_two_steps() -> None:
    engine = FakeEngine([10] * 50)
    generation = generate(engine, PROMPT, GREEDY, 100, [EOS])
    engine.on_step = lambda step: generation.stop() if step == 4 else None
    assert list(generation) == [10] * 4  # the step that ran is finished, its logits are not used
    assert engine.position == 3 + 4
    assert generation.stats.stop_reason is StopReason.INTERRUPTED
    assert list(generation) == []


def test_stop_before_the_first_token() -> None:
    generation = generate(FakeEngine([10]), PROMPT, GREEDY, 100, [EOS])
    generation.stop()
    assert list(generation) == []
    assert generation.stats.stop_reason is StopReason.INTERRUPTED


def test_times_are_those_of_the_engines_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = itertools.count()
    monkeypatch.setattr("time.perf_counter", lambda: float(next(ticks)))  # each look at the clock: a second later
    generation = generate(FakeEngine([10, 11, 12]), PROMPT, GREEDY, 3, [EOS])
    list(generation)
    stats = generation.stats
    assert stats.prefill_s == 1.0
    assert stats.time_to_first_token_s == 2.0
    assert stats.step_s == (1.0, 1.0)
    assert (stats.prefill_tokens_per_s, stats.decode_tokens_per_s) == (3.0, 1.0)


def test_stats_by_hand() -> None:
    stats = GenerationStats(10, 4, 0.5, (0.1, 0.4, 0.2, 0.1), 0.6, StopReason.END)
    assert stats.decode_s == pytest.approx(0.8)
    assert stats.prefill_tokens_per_s == 20
    assert stats.decode_tokens_per_s == pytest.approx(5)
    assert stats.decode_step_median_s == pytest.approx(0.15)


def test_what_was_not_measured_is_none() -> None:
    stats = GenerationStats(10, 0, 0.0, (), None, None)
    assert stats.prefill_tokens_per_s is None
    assert stats.decode_tokens_per_s is None
    assert stats.decode_step_median_s is None


def test_the_same_seed_gives_the_same_text() -> None:
    hot = SamplingSettings(temperature=3.0, seed=5)
    first, second = (list(generate(FakeEngine([10] * 20, 99), PROMPT, hot, 20)) for _ in range(2))
    assert first == second
    assert len(set(first)) > 5


def test_broken_logits_end_in_an_error() -> None:
    class Broken(FakeEngine):
        def decode(self, token_id: int) -> npt.NDArray[np.float32]:
            return super().decode(token_id) * np.float32("nan")

    generation = generate(Broken([10] * 5), PROMPT, GREEDY, 100)
    assert next(generation) == 10
    with pytest.raises(ModelError, match="largest logit of the model is nan"):
        next(generation)


@pytest.mark.parametrize(
    ("prompt", "max_tokens", "message"), [([], 5, "prompt has no tokens"), (PROMPT, 0, "at least 1, not 0")]
)
def test_what_cannot_be_is_refused_at_once(prompt: list[int], max_tokens: int, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        generate(FakeEngine([10]), prompt, GREEDY, max_tokens)


def test_penalties_see_the_prompt() -> None:
    settings = SamplingSettings(repetition_penalty=100.0)
    assert list(generate(FakeEngine([5, 5]), PROMPT, settings, 1)) == [5]  # 5 / 100 is still the largest
    settings = SamplingSettings(logit_bias={7: 1.0}, repetition_penalty=100.0)
    assert list(generate(FakeEngine([5, 5]), PROMPT, settings, 1)) == [7]


def test_several_texts_after_one_prompt() -> None:
    hot = SamplingSettings(temperature=3.0, seed=5)
    engine = FakeEngine([10] * 20, 99)
    prefills = []
    engine.on_step = prefills.append
    texts, seeds = [], []
    for generation in generate_several(engine, PROMPT, hot, 8, (), count=3):
        assert engine.position in (0, len(PROMPT))
        texts.append(list(generation))
        seeds.append(generation.seed)
    assert seeds == [5, 6, 7]
    assert prefills == [1, 2, 3, 4, 5, 6, 7] * 3
    alone = [list(generate(FakeEngine([10] * 20, 99), PROMPT, replace(hot, seed=seed), 8)) for seed in seeds]
    assert texts == alone
    assert len(set(map(tuple, texts))) == 3


def test_several_texts_cost_one_prefill() -> None:
    generations = list[Generation]()
    for generation in generate_several(FakeEngine([10, 11]), PROMPT, GREEDY, 5, [EOS], count=2):
        assert list(generation) == [10, 11]
        generations.append(generation)
    assert generations[0].stats.prefill_s > 0
    assert generations[1].stats.prefill_s == 0
    assert generations[1].stats.prefill_tokens_per_s is None


def test_logits_after_the_prompt_are_a_copy() -> None:
    class OneBuffer(FakeEngine):
        buffer = np.zeros(512, np.float32)

        def _logits(self) -> npt.NDArray[np.float32]:
            self.buffer[:] = super()._logits()
            return self.buffer

    texts = [list(text) for text in generate_several(OneBuffer([10, 11]), PROMPT, GREEDY, 5, [EOS], count=2)]
    assert texts == [[10, 11], [10, 11]]


def test_several_texts_in_the_wrong_order_or_number() -> None:
    generations = generate_several(FakeEngine([10]), PROMPT, GREEDY, 5, [EOS], count=2)
    next(generations)
    with pytest.raises(UsageError, match="must be generated before the next"):
        next(generations)
    with pytest.raises(UsageError, match="n must be at least 1, not 0"):
        next(generate_several(FakeEngine([10]), PROMPT, GREEDY, 5, count=0))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return load_tokenizer(train_tokenizer(tmp_path_factory.mktemp("model")))


@pytest.mark.parametrize(
    ("words", "text", "reason"),
    [
        ([], "the cat sat.", StopReason.END),
        (["t s"], "the ca", StopReason.STOP_WORD),
        (["at", "cat"], "the ", StopReason.STOP_WORD),
        (["sat. "], "the cat sat.", StopReason.END),  # held back, and let go at the end
    ],
)
def test_stop_words_end_a_text(tokenizer: Tokenizer, words: list[str], text: str, reason: StopReason) -> None:
    prompt = tokenizer.encode("a")
    engine = FakeEngine(tokenizer.encode("the cat sat.", add_bos=False))
    generation = generate(engine, prompt, GREEDY, 100, [EOS])
    pieces = list(text_of(generation, TextStream(tokenizer, prompt), StopWords(words)))
    assert "".join(pieces) == " " + text
    assert generation.stats.stop_reason is reason
    assert all(pieces)
    if reason is StopReason.STOP_WORD:  # the step after it is never run
        assert len(engine.fed) == generation.stats.generated_tokens - 1


def test_text_needs_no_stop_words(tokenizer: Tokenizer) -> None:
    engine = FakeEngine(tokenizer.encode("the cat", add_bos=False))
    generation = generate(engine, tokenizer.encode("a"), GREEDY, 100, [EOS])
    assert "".join(text_of(generation, TextStream(tokenizer))) == "the cat"
