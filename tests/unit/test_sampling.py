"""Sampling against distributions worked by hand."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybrid.errors import ModelError, UsageError
from hybrid.text.sampling import Sampler, SamplingSettings, check, draw, keep_top_k, keep_top_p, softmax

# Probabilities 0.5, 0.25, 0.125, 0.125 at temperature 1, as logits, in another order.
SHARES = np.array([0.125, 0.5, 0.125, 0.25])
LOGITS = np.log(SHARES)
EACH_ID = np.arange(4)


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


@pytest.mark.parametrize(
    ("p", "kept", "shares"),
    [
        (0.3, [1], [1.0]),
        (0.5, [1], [1.0]),
        (0.51, [1, 3], [2 / 3, 1 / 3]),
        (0.8, [1, 3, 0], [4 / 7, 2 / 7, 1 / 7]),  # of ids 0 and 2, equally likely, the lower one
        (0.99, [1, 3, 0, 2], [0.5, 0.25, 0.125, 0.125]),
        (1.0, [0, 1, 2, 3], SHARES.tolist()),
    ],
)
def test_top_p_by_hand(p: float, kept: list[int], shares: list[float]) -> None:
    ids, probabilities = keep_top_p(EACH_ID, SHARES, p)
    assert ids.tolist() == kept
    np.testing.assert_allclose(probabilities, shares)


@given(
    weights=st.lists(st.integers(0, 100), min_size=1, max_size=200).filter(any),
    p=st.floats(0.01, 0.99),
)
def test_top_p_is_the_smallest_set_that_reaches_p(weights: list[int], p: float) -> None:
    shares = np.array(weights) / sum(weights)
    ids, kept = keep_top_p(np.arange(len(shares)), shares, p)
    mass = shares[ids].sum()
    assert mass >= p - 1e-9
    assert mass - shares[ids].min() < p + 1e-9
    assert shares[ids].min() >= np.delete(shares, ids).max(initial=0.0)
    assert math.isclose(kept.sum(), 1.0)


@pytest.mark.parametrize(
    ("uniform", "token"), [(0.0, 0), (0.12, 0), (0.125, 1), (0.62, 1), (0.625, 2), (0.75, 3), (1 - 1e-16, 3)]
)
def test_draw_by_hand(uniform: float, token: int) -> None:
    assert draw(EACH_ID, SHARES, uniform) == token


def test_draw_never_takes_a_token_without_a_share() -> None:
    for uniform in (0.0, 0.5, 1 - 1e-16):
        assert draw(np.array([7, 8, 9]), np.array([0.0, 1.0, 0.0]), uniform) == 8


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
    with pytest.raises(ModelError, match="largest logit of the model is"):
        Sampler(settings)(np.array(logits, np.float32))


def test_masked_logits_pass_the_check() -> None:
    check(np.array([-np.inf, 0.0]))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": -0.1}, "temperature must be a number from 0 up, not -0.1"),
        ({"temperature": math.nan}, "temperature must be a number from 0 up, not nan"),
        ({"temperature": math.inf}, "not inf"),
        ({"top_k": -1}, "top-k must be .* not -1"),
        ({"top_p": 0.0}, "top-p must be above 0 and at most 1, not 0.0"),
        ({"top_p": 1.5}, "not 1.5"),
        ({"top_p": math.nan}, "not nan"),
        ({"seed": -1}, "seed must be .* not -1"),
    ],
)
def test_settings_that_cannot_be_name_value_and_bound(settings: dict[str, float], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        SamplingSettings(**settings)  # type: ignore[arg-type]
