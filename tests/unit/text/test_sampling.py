"""Sampling against distributions worked by hand."""

import math
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybrid.errors import ModelError, UsageError
from hybrid.text.occurrences import Occurrences
from hybrid.text.sampling import Sampler, SamplingSettings
from hybrid.text.transforms import (
    Weights,
    check,
    draw,
    draw_first,
    keep_first,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    penalise_counts,
    penalise_repetition,
    typicality,
    weigh,
)

# Probabilities 0.5, 0.25, 0.125, 0.125 at temperature 1, as logits, in another order.
SHARES = np.array([0.125, 0.5, 0.125, 0.25])
LOGITS = np.log(SHARES)


def softmax(logits: Any, temperature: float) -> Any:
    weights = weigh(logits, temperature)
    return weights / weights.sum()


def test_softmax_by_hand() -> None:
    np.testing.assert_allclose(softmax(LOGITS, 1.0), SHARES)
    # Temperature 0.5 squares: 1/64, 16/64, 1/64, 4/64, divided by their sum of 22/64.
    np.testing.assert_allclose(softmax(LOGITS, 0.5), np.array([1, 16, 1, 4]) / 22)
    # Temperature 2 takes square roots.
    np.testing.assert_allclose(softmax(LOGITS, 2.0), np.sqrt(SHARES) / np.sqrt(SHARES).sum())


@pytest.mark.parametrize("temperature", [1e-300, 1e-30, 1e-3])
def test_a_tiny_temperature_is_greedy_and_quiet(temperature: float) -> None:
    logits = LOGITS.astype(np.float32)
    np.testing.assert_array_equal(softmax(logits, temperature), [0, 1, 0, 0])


def test_masked_tokens_have_no_share() -> None:
    np.testing.assert_allclose(softmax(np.array([0.0, -np.inf, 0.0]), 0.7), [0.5, 0, 0.5])


@pytest.mark.parametrize(
    ("k", "kept"),
    [(0, [0, 1, 2, 3]), (1, [1]), (2, [1, 3]), (3, [0, 1, 3]), (4, [0, 1, 2, 3]), (9, [0, 1, 2, 3])],
)
def test_top_k_by_hand(k: int, kept: list[int]) -> None:
    assert keep_top_k(LOGITS, k).tolist() == kept  # of ids 0 and 2, equally likely, the lower one


@given(
    logits=st.lists(st.integers(-5, 5), min_size=1, max_size=400),
    k=st.integers(1, 12),
)
def test_top_k_is_a_stable_sort_cut_off(logits: list[int], k: int) -> None:
    best = sorted(range(len(logits)), key=lambda i: (-logits[i], i))[:k]
    assert keep_top_k(np.array(logits, np.float32), k).tolist() == sorted(best)


TOP_P = [
    (0.3, [1]),
    (0.5, [1]),
    (0.51, [1, 3]),
    (0.8, [0, 1, 3]),  # of ids 0 and 2, equally likely, the lower one
    (0.99, [0, 1, 2, 3]),
    (1.0, [0, 1, 2, 3]),
]


@pytest.mark.parametrize(("p", "kept"), TOP_P)
def test_top_p_by_hand(p: float, kept: list[int]) -> None:
    weights = keep_top_p(SHARES, p)
    assert np.flatnonzero(weights).tolist() == kept
    np.testing.assert_array_equal(weights[kept], SHARES[kept])


@given(
    weights=st.lists(st.integers(0, 100), min_size=1, max_size=200).filter(any),
    p=st.floats(0.01, 0.99),
)
def test_top_p_is_the_smallest_set_that_reaches_p(weights: list[int], p: float) -> None:
    shares = np.array(weights) / sum(weights)
    order = sorted(range(len(weights)), key=lambda i: (-weights[i], i))
    count = int(np.searchsorted(np.cumsum(shares[order]), p)) + 1
    assert np.flatnonzero(keep_top_p(shares, p)).tolist() == sorted(order[:count])


def test_min_p_by_hand() -> None:
    for p, kept in ((0.0, [0, 1, 2, 3]), (0.25, [0, 1, 2, 3]), (0.26, [1, 3]), (0.5, [1, 3]), (1.0, [1])):
        weights = SHARES.copy()
        keep_min_p(weights, p)
        assert np.flatnonzero(weights).tolist() == kept


def test_typical_by_hand() -> None:
    # Surprises in bits are 3, 1, 3, 2, expected is 3/8 + 1/2 + 3/8 + 2/4 = 1.75, so they are off by
    # 1.25, 0.75, 1.25, 0.25: id 3 is the most typical, not the likeliest.
    off = np.array([1.25, 0.75, 1.25, 0.25])
    np.testing.assert_allclose(typicality(SHARES), -off * math.log(2))
    for p, kept in ((0.25, [3]), (0.26, [1, 3]), (0.76, [0, 1, 3]), (1.0, [0, 1, 2, 3])):
        assert np.flatnonzero(keep_first(SHARES, typicality(SHARES), p)).tolist() == kept
    # A token that was removed changes nothing.
    np.testing.assert_allclose(typicality(np.array([*SHARES, 0.0]))[:4], typicality(SHARES))


@pytest.mark.parametrize(
    ("uniform", "token"), [(0.0, 0), (0.12, 0), (0.125, 1), (0.62, 1), (0.625, 2), (0.75, 3), (1 - 1e-16, 3)]
)
def test_draw_by_hand(uniform: float, token: int) -> None:
    assert draw(SHARES, uniform) == token


def test_draw_never_takes_a_token_without_a_share() -> None:
    for uniform in (0.0, 0.5, 1 - 1e-16):
        assert draw(np.array([0.0, 1.0, 0.0]), uniform) == 1
        assert draw(np.concatenate([np.zeros(2000), [1.0], np.zeros(2000)]).astype(np.float32), uniform) == 2000


@given(uniform=st.floats(0, 1, exclude_max=True), size=st.integers(1, 3000))
def test_draw_in_blocks_is_draw_by_cumulative_sum(uniform: float, size: int) -> None:
    weights = np.random.default_rng(size).integers(0, 3, size).astype(np.float32)
    weights[size // 2] = 1
    ends = np.cumsum(weights, dtype=np.float64)
    assert draw(weights, uniform) == np.searchsorted(ends, uniform * ends[-1], side="right")


@given(
    weights=st.lists(st.integers(0, 20), min_size=1, max_size=40).filter(any),
    p=st.floats(0.01, 0.99),
    seed=st.integers(0, 1000),
    rank=st.sampled_from(["likely", "typical"]),
)
def test_drawing_without_sorting_stays_in_what_sorting_keeps(
    weights: list[int], p: float, seed: int, rank: str
) -> None:
    exact = np.array(weights, np.float64)
    score = exact.copy() if rank == "likely" else typicality(exact)
    kept = keep_first(exact, score, p)
    uniform = np.random.default_rng(seed).random
    drawn = draw_first(exact.copy(), score, p * float(exact.sum()), uniform)
    assert kept[drawn] > 0


@pytest.mark.parametrize("score_of", [lambda weights: weights, typicality])
@pytest.mark.parametrize("p", [0.2, 0.6, 0.9])
def test_drawing_without_sorting_follows_the_weights(score_of: Callable[[Weights], Weights], p: float) -> None:
    shares = np.arange(1, 11) / 55
    kept = keep_first(shares, score_of(shares), p)
    uniform = np.random.default_rng(0).random
    counts = np.zeros(10)
    for _ in range(4000):
        weights = shares.copy()  # used up by each draw
        score = weights if score_of(weights) is weights else score_of(weights)
        counts[draw_first(weights, score, p, uniform)] += 1
    np.testing.assert_allclose(counts / 4000, kept / kept.sum(), atol=0.03)


def chances(settings: SamplingSettings, logits: Weights, prompt: list[int] | None = None) -> Weights:
    """Count how often each token is drawn first."""
    counts = np.zeros(len(logits))
    for seed in range(1500):
        counts[Sampler(replace(settings, seed=seed), prompt or [])(logits)] += 1
    return counts / 1500


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        # 1/8, 1/2, 1/8, 1/4: temperature comes first. Squared: 1, 16, 1, 4 of 22; top-p 0.9 needs 20 of 22.
        ({"temperature": 0.5, "top_p": 0.9}, [0, 16 / 20, 0, 4 / 20]),
        # Top-k before top-p: of 1/2 and 1/4, the first alone has 2/3.
        ({"temperature": 1.0, "top_k": 2, "top_p": 0.6}, [0, 1, 0, 0]),
        # Top-p before min-p: 0.8 keeps ids 1, 3, 0; min-p 0.3 keeps 1 and 3 of them.
        ({"temperature": 1.0, "top_p": 0.8, "min_p": 0.3}, [0, 2 / 3, 0, 1 / 3]),
        # Were min-p first, id 1 alone would have 2/3 of what is left, and so make up 0.6.
        ({"temperature": 1.0, "min_p": 0.3, "top_p": 0.6}, [0, 2 / 3, 0, 1 / 3]),
        # Typical last: of 2/3 and 1/3 (min-p), log2 surprises 0.585 and 1.585, expected 0.918: id 1 is nearer.
        ({"temperature": 1.0, "min_p": 0.3, "typical_p": 0.6}, [0, 1, 0, 0]),
        # Bias before temperature: log 4 on id 0 makes it 1/2 of 11/8; temperature 0.5 squares 4, 4, 1, 2.
        ({"temperature": 0.5, "logit_bias": {0: math.log(4)}}, [16 / 37, 16 / 37, 1 / 37, 4 / 37]),
        ({"temperature": 1.0, "logit_bias": {1: -math.inf}}, [1 / 4, 0, 1 / 4, 1 / 2]),
    ],
)
def test_rules_apply_in_their_order(settings: dict[str, Any], expected: list[float]) -> None:
    np.testing.assert_allclose(chances(SamplingSettings(**settings), LOGITS), expected, atol=0.04)


def test_penalties_by_hand() -> None:
    logits = np.array([2.0, -2.0, 0.0, 3.0, -np.inf])
    penalise_repetition(logits, np.array([0, 1, 2, 4]), 2.0)
    np.testing.assert_array_equal(logits, [1.0, -4.0, 0.0, 3.0, -np.inf])
    penalise_counts(logits, np.array([0, 3]), np.array([1, 3]), 0.5, 0.25)
    np.testing.assert_array_equal(logits, [0.25, -4.0, 0.0, 1.75, -np.inf])


def test_repetition_counts_the_prompt_and_the_others_do_not() -> None:
    logits = np.array([1.0, 0.9, 0.8], np.float32)
    assert Sampler(SamplingSettings(repetition_penalty=1.2), [0, 0])(logits) == 1
    assert Sampler(SamplingSettings(presence_penalty=1.0, frequency_penalty=1.0), [0, 0])(logits) == 0


@pytest.mark.parametrize(
    ("settings", "tokens"),
    [
        # 1.0, 0.9, 0.8 divided by 1.3, once and for all: 0.77, 0.69, 0.62.
        ({"repetition_penalty": 1.3}, [0, 1, 2, 0, 0, 0]),
        ({"presence_penalty": 0.15}, [0, 1, 0, 0, 0, 0]),  # 0.85 after the first, 0.75 after the second; once
        ({"frequency_penalty": 0.15}, [0, 1, 0, 2, 1, 0]),  # again each time
    ],
)
def test_penalties_over_a_text(settings: dict[str, float], tokens: list[int]) -> None:
    sampler = Sampler(SamplingSettings(**settings))  # type: ignore[arg-type]
    logits = np.array([1.0, 0.9, 0.8], np.float32)
    assert [sampler(logits) for _ in range(6)] == tokens
    np.testing.assert_array_equal(logits, np.array([1.0, 0.9, 0.8], np.float32))  # the engine's, untouched


@given(ids=st.lists(st.integers(0, 50)), more=st.lists(st.integers(0, 50)))
def test_occurrences_count(ids: list[int], more: list[int]) -> None:
    occurrences = Occurrences(ids)
    for token_id in more:
        occurrences.add(token_id)
    counts = dict(zip(occurrences.ids.tolist(), occurrences.counts.tolist(), strict=True))
    assert counts == Counter(ids + more)


def test_a_bias_outside_the_vocabulary_or_on_all_of_it_is_refused() -> None:
    with pytest.raises(UsageError, match=r"logit-bias .* 4.* 4"):
        Sampler(SamplingSettings(logit_bias={4: 1.0}))(LOGITS)
    with pytest.raises(UsageError, match="logit-bias"):
        Sampler(SamplingSettings(logit_bias=dict.fromkeys(range(4), -math.inf)))(LOGITS)


def test_frequencies_follow_the_probabilities() -> None:
    sampler = Sampler(SamplingSettings(temperature=1.0, seed=3))
    counts = np.bincount([sampler(LOGITS) for _ in range(8000)], minlength=4)
    np.testing.assert_allclose(counts / 8000, SHARES, atol=0.02)


def test_greedy_takes_the_lowest_of_equals() -> None:
    assert Sampler(SamplingSettings())(np.array([0.0, 2.0, 2.0, -np.inf])) == 1


def test_the_same_seed_draws_the_same_tokens() -> None:
    logits = np.random.default_rng(0).standard_normal(1000).astype(np.float32)
    settings = SamplingSettings(temperature=0.9, top_k=50, top_p=0.95, seed=11)

    def tokens(settings: SamplingSettings) -> list[int]:
        sampler = Sampler(settings)
        return [sampler(logits) for _ in range(50)]

    assert tokens(settings) == tokens(settings)
    assert tokens(settings) != tokens(SamplingSettings(temperature=0.9, top_k=50, top_p=0.95, seed=12))


def test_a_seed_that_was_drawn_can_be_used_again() -> None:
    drawn = Sampler(SamplingSettings(temperature=1.0))
    again = Sampler(SamplingSettings(temperature=1.0, seed=drawn.seed))
    assert [drawn(LOGITS) for _ in range(20)] == [again(LOGITS) for _ in range(20)]


def test_a_large_vocabulary_keeps_every_rule() -> None:
    logits = np.random.default_rng(1).standard_normal(151_936).astype(np.float32)
    best = np.argsort(-logits, kind="stable")[:40]
    assert keep_top_k(logits, 40).tolist() == sorted(best.tolist())
    sampler = Sampler(SamplingSettings(temperature=0.8, top_k=40, top_p=0.9, seed=0))
    assert {sampler(logits) for _ in range(200)} <= set(best.tolist())


@pytest.mark.parametrize("settings", [SamplingSettings(), SamplingSettings(temperature=1.0, top_k=2)])
@pytest.mark.parametrize("logits", [[0.0, math.nan], [0.0, math.inf], [-math.inf, -math.inf]])
def test_logits_that_are_no_numbers_are_refused(settings: SamplingSettings, logits: list[float]) -> None:
    with pytest.raises(ModelError, match=r"nan|inf"):
        Sampler(settings)(np.array(logits, np.float32))


def test_masked_logits_pass_the_check() -> None:
    check(np.array([-np.inf, 0.0]))


@pytest.mark.parametrize(
    ("settings", "mentions"),
    [
        ({"temperature": -0.1}, ["temperature", "0", "-0.1"]),
        ({"temperature": math.nan}, ["temperature", "0", "nan"]),
        ({"temperature": math.inf}, ["temperature", "inf"]),
        ({"top_k": -1}, ["top-k", "0", "-1"]),
        ({"top_p": 0.0}, ["top-p", "1", "0.0"]),
        ({"top_p": 1.5}, ["top-p", "1", "1.5"]),
        ({"top_p": math.nan}, ["top-p", "nan"]),
        ({"seed": -1}, ["seed", "0", "-1"]),
        ({"typical_p": 0.0}, ["typical-p", "1", "0.0"]),
        ({"min_p": 1.5}, ["min-p", "0", "1", "1.5"]),
        ({"repetition_penalty": 0.0}, ["repetition-penalty", "0.001", "1000", "0.0"]),
        ({"presence_penalty": math.nan}, ["presence-penalty", "-1e+06", "1e+06", "nan"]),
        ({"frequency_penalty": math.inf}, ["frequency-penalty", "-1e+06", "1e+06", "inf"]),
        ({"logit_bias": {-1: 0.0}}, ["logit-bias", "-1", "0.0"]),
        ({"logit_bias": {1: math.inf}}, ["logit-bias", "1", "inf"]),
    ],
)
def test_settings_that_cannot_be_name_value_and_bound(settings: dict[str, Any], mentions: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        SamplingSettings(**settings)
    words = re.findall(r"[^\s,]+", str(caught.value))
    assert set(mentions) <= set(words)
