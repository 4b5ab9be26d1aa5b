"""Beam search against brute force, on an engine whose logits depend on all that it was fed."""

import itertools
import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest

from hybrid.errors import ContextFullError, UsageError
from hybrid.text.beam import Beam, beam_search, log_softmax
from hybrid.text.generate import StopReason, generate
from hybrid.text.sampling import SamplingSettings
from tests.fakes import Unshared

PROMPT = [3, 1]
VOCAB, END = 4, 0


class ToyEngine(Unshared):
    """Logits are random numbers seeded by the ids in the cache; counts the tokens that it ran."""

    def __init__(self, seed: int = 0, context_tokens: int = 64, vocab: int = VOCAB) -> None:
        self.seed = seed
        self.context_tokens = context_tokens
        self.vocab = vocab
        self.cache: list[int] = []
        self.ran = 0

    def prefill(self, token_ids: Sequence[int], /) -> npt.NDArray[np.float32]:
        assert len(token_ids) > 0
        if self.position + len(token_ids) > self.context_tokens:
            raise ContextFullError("full")
        self.cache += token_ids
        self.ran += len(token_ids)
        return self.logits_after(self.cache)

    def decode(self, token_id: int, /) -> npt.NDArray[np.float32]:
        return self.prefill([token_id])

    def trim(self, length: int, /) -> None:
        assert 0 <= length <= self.position
        del self.cache[length:]

    def logits_after(self, ids: Sequence[int]) -> npt.NDArray[np.float32]:
        return np.random.default_rng([self.seed, *ids]).normal(0, 2, self.vocab).astype(np.float32)


def brute_force(engine: ToyEngine, max_tokens: int, ends: Sequence[int], length_penalty: float) -> list[Beam]:
    """Every text, best first."""
    found = []
    for length in range(1, max_tokens + 1):
        for ids in itertools.product(range(VOCAB), repeat=length):
            if any(token_id in ends for token_id in ids[:-1]) or (length < max_tokens and ids[-1] not in ends):
                continue
            total = 0.0
            for index, token_id in enumerate(ids):
                total += float(log_softmax(engine.logits_after([*PROMPT, *ids[:index]]))[token_id])
            ended = ids[-1] in ends
            reason = StopReason.END if ended else StopReason.MAX_TOKENS
            found.append(Beam(ids[:-1] if ended else ids, total, total / length**length_penalty, reason))
    return sorted(found, key=lambda beam: -beam.score)


@pytest.mark.parametrize("length_penalty", [1.0, 0.0, 2.0, -1.0])
@pytest.mark.parametrize("ends", [(END,), (END, 2), ()])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_enough_beams_find_the_best_of_all_texts(seed: int, ends: tuple[int, ...], length_penalty: float) -> None:
    best = brute_force(ToyEngine(seed), 4, ends, length_penalty)
    found = beam_search(ToyEngine(seed), PROMPT, VOCAB**4, 4, ends, length_penalty)
    assert [(beam.token_ids, beam.stop_reason) for beam in found] == [(b.token_ids, b.stop_reason) for b in best]
    np.testing.assert_allclose([beam.score for beam in found], [beam.score for beam in best])


@pytest.mark.parametrize("seed", range(5))
def test_one_beam_is_greedy(seed: int) -> None:
    greedy = generate(ToyEngine(seed), PROMPT, SamplingSettings(), 10, [END])
    found = beam_search(ToyEngine(seed), PROMPT, 1, 10, [END], length_penalty=0.0)
    assert found[0].token_ids == tuple(greedy)
    assert found[0].stop_reason == greedy.stats.stop_reason


def plain_beam_search(engine: ToyEngine, beams: int, max_tokens: int) -> list[tuple[int, ...]]:
    """The definition, without ends: keep the likeliest `beams` of all one-token continuations."""
    going = [((), 0.0)]
    for _ in range(max_tokens):
        following = [
            ((*ids, token_id), total + float(share))
            for ids, total in going
            for token_id, share in enumerate(log_softmax(engine.logits_after([*PROMPT, *ids])))
        ]
        going = sorted(following, key=lambda text: -text[1])[:beams]  # type: ignore[assignment]
    return [ids for ids, _ in going]


@pytest.mark.parametrize("seed", range(5))
def test_few_beams_are_those_of_the_definition(seed: int) -> None:
    found = beam_search(ToyEngine(seed), PROMPT, 3, 6)
    assert [beam.token_ids for beam in found] == plain_beam_search(ToyEngine(seed), 3, 6)


def test_more_beams_find_texts_that_greedy_misses() -> None:
    better = 0
    for seed in range(20):
        few, many = (beam_search(ToyEngine(seed), PROMPT, n, 6, [END], 0.0)[0].log_probability for n in (1, 8))
        assert many >= few - 1e-9
        better += many > few + 1e-9
    assert better > 5


def test_scores_add_up() -> None:
    for beam in beam_search(ToyEngine(4), PROMPT, 4, 5, [END], 0.7):
        ids = [*beam.token_ids, END] if beam.stop_reason is StopReason.END else [*beam.token_ids]
        steps = [log_softmax(ToyEngine(4).logits_after([*PROMPT, *ids[:i]]))[ids[i]] for i in range(len(ids))]
        assert beam.log_probability == pytest.approx(sum(steps))
        assert beam.score == pytest.approx(sum(steps) / len(ids) ** 0.7)


def test_the_prompt_runs_once_and_what_is_common_is_kept() -> None:
    engine = ToyEngine(1)
    found = beam_search(engine, PROMPT, 1, 10)
    assert engine.ran == len(PROMPT) + 9  # as greedy: the last token need not run
    engine = ToyEngine(1)
    found = beam_search(engine, PROMPT, 3, 10)
    assert engine.ran < len(PROMPT) + 3 * sum(range(10))  # less than each beam from the prompt, each step
    assert engine.cache == [*PROMPT, *found[0].token_ids][: len(engine.cache)]


def test_it_goes_on_from_the_cache() -> None:
    engine = ToyEngine(2)
    engine.prefill([2, 2])
    found = beam_search(engine, PROMPT, 2, 5)
    assert engine.cache[:4] == [2, 2, *PROMPT]
    assert found[0].log_probability < 0


def test_a_full_context_ends_the_texts_after_one_last_token() -> None:
    found = beam_search(ToyEngine(0, context_tokens=5), PROMPT, 2, 100)
    assert {len(beam.token_ids) for beam in found} == {4}
    assert {beam.stop_reason for beam in found} == {StopReason.CONTEXT}
    with pytest.raises(ContextFullError):
        beam_search(ToyEngine(0, context_tokens=1), PROMPT, 2, 100)


def test_tokens_without_probability_are_never_taken() -> None:
    class Masked(ToyEngine):
        def logits_after(self, ids: Sequence[int]) -> npt.NDArray[np.float32]:
            return np.array([-np.inf, 1.0, 0.0, -np.inf], np.float32)

    found = beam_search(Masked(), PROMPT, 10, 2, [END])
    assert {token_id for beam in found for token_id in beam.token_ids} == {1, 2}
    assert len(found) == 4


@pytest.mark.parametrize(
    ("prompt", "beams", "max_tokens", "penalty", "message"),
    [
        ([], 1, 1, 1.0, "prompt has no tokens"),
        (PROMPT, 0, 1, 1.0, "beams must be at least 1, not 0"),
        (PROMPT, 1, 0, 1.0, "max-tokens must be at least 1, not 0"),
        (PROMPT, 1, 1, math.nan, "length-penalty must be a number, not nan"),
    ],
)
def test_what_cannot_be_is_refused(
    prompt: list[int], beams: int, max_tokens: int, penalty: float, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        beam_search(ToyEngine(), prompt, beams, max_tokens, (), penalty)
