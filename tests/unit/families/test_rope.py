"""Rotary settings: which of them count, and the angles that they come to."""

from typing import Any

import numpy as np
import pytest

from hybrid.families.config.rope import Rope, parse_rope
from hybrid.families.config.values import ConfigValues

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 63,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
LONGROPE = {"type": "longrope", "short_factor": [1.0, 2.0, 3.0, 4.0], "long_factor": [5.0, 6.0, 7.0, 8.0]}
PLAIN = [1.0, 0.1, 0.01, 0.001]  # heads of 8, base 10000


def parse(head_dim: int = 8, **table: Any) -> Rope:
    return parse_rope(ConfigValues(table, "config.json"), head_dim, 64)


def test_frequencies_by_hand() -> None:
    # Base 100, heads of 4: a pair turns 1 and 1/10 radians a position.
    assert np.allclose(parse(4, rope_theta=100.0).frequencies, [1.0, 0.1])
    linear = {"type": "linear", "factor": 4.0}
    assert np.allclose(parse(4, rope_theta=100.0, rope_scaling=linear).frequencies, [0.25, 0.025])
    # 63 positions hold 10 waves of the first pair, which is kept, and 1 of the second, which is divided.
    assert np.allclose(parse(4, rope_theta=100.0, rope_scaling=LLAMA3).frequencies, [1.0, 0.1 / 8], rtol=0.02)
    # 63 positions hold 10, 3.2, 1 and 0.3 waves of heads of 8: YaRN keeps the first, divides the last two by 4, and
    # the second is in the middle of the ramp.
    yarn = {**YARN, "original_max_position_embeddings": 63, "beta_fast": 10.0, "beta_slow": 1.0, "truncate": False}
    by_hand = [1.0, 0.3162 * (1 / 2 + 1 / 8), 0.1 / 4, 0.0316 / 4]
    assert np.allclose(parse(8, rope_theta=100.0, rope_scaling=yarn).frequencies, by_hand, rtol=0.02)
    longrope = {"type": "longrope", "short_factor": [2.0, 5.0], "long_factor": [1.0, 1.0]}
    assert np.allclose(parse(4, rope_theta=100.0, rope_scaling=longrope).frequencies, [0.5, 0.02])
    proportional = {"rope_type": "proportional", "factor": 2.0, "partial_rotary_factor": 0.5}
    assert np.allclose(parse(4, rope_theta=100.0, rope_parameters=proportional).frequencies, [0.5, 0.0])


def test_tables_by_hand() -> None:
    cos, sin = parse().tables(3)
    assert (cos.shape, cos.dtype) == ((3, 4), np.float32)
    assert np.allclose(sin[2], np.sin(2 * np.array(PLAIN)))
    louder = parse(rope_scaling={"type": "yarn", "factor": 1.0, "attention_factor": 3.0})
    assert np.allclose(louder.tables(1)[0], 3.0)


@pytest.mark.parametrize(
    "table",
    [
        {"rope_scaling": {**LLAMA3, "type": "llama3"}, "rope_theta": 500000.0},
        {"rope_parameters": {**LLAMA3, "rope_theta": 500000.0}},
    ],
)
def test_llama3_rope_old_and_new(table: dict[str, Any]) -> None:
    assert parse(**table) == parse(rope_scaling=LLAMA3, rope_theta=500000)


def test_attention_factors() -> None:
    """By hand: 0.1 ln 4 + 1, and (1 + ln 4 / ln 16) to the power of a half."""
    assert parse(rope_scaling=YARN).attention_factor == pytest.approx(1.138629436)
    longrope = parse(rope_scaling={**LONGROPE, "original_max_position_embeddings": 16})
    assert longrope.attention_factor == pytest.approx(1.224744871)
    assert longrope.frequencies == pytest.approx([1.0, 0.1 / 2, 0.01 / 3, 0.001 / 4])


def test_no_scaling() -> None:
    for table in ({}, {"rope_scaling": None}, {"rope_scaling": {"rope_type": "default"}}, {"rope_scaling": {}}):
        assert parse(**table).frequencies == pytest.approx(PLAIN)
        assert (parse(**table).context_limit, parse(**table).attention_factor) == (64, 1.0)


def test_rope_scaling_goes_before_rope_parameters() -> None:
    """Whole: the base of the other is not taken either."""
    linear, based = {"type": "linear", "factor": 2.0}, {"rope_type": "default", "rope_theta": 500.0}
    both = parse(rope_scaling=linear, rope_parameters=based)
    assert both.frequencies == parse(rope_scaling=linear).frequencies
    assert ["rope_scaling" in note for note in both.notes] == [True]
    assert parse(rope_scaling={}, rope_parameters={"rope_theta": 500.0}) == parse(rope_theta=500.0)
    assert parse(rope_theta=300.0, rope_parameters={"rope_theta": 500.0}) == parse(rope_theta=500.0)
    halved = np.array(parse(rope_theta=300.0).frequencies) / 2
    assert np.allclose(parse(rope_theta=300.0, rope_scaling=linear).frequencies, halved)


def test_original_positions_at_the_top_win() -> None:
    table = {"rope_type": "llama3", "factor": 2.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    ropes = [
        parse(rope_parameters=table | inside, **beside)
        for inside in ({}, {"original_max_position_embeddings": 32})
        for beside in ({}, {"original_max_position_embeddings": 16})
    ]
    alone = [parse(rope_parameters={**table, "original_max_position_embeddings": n}) for n in (64, 16, 32)]
    assert ropes == [alone[0], alone[1], alone[2], alone[1]]
    assert len({rope.frequencies for rope in alone}) == 3


def test_where_contexts_end() -> None:
    """YaRN reaches as far as it stretches; what changes with the length of the text ends where it would change."""
    assert parse(rope_scaling={**YARN, "original_max_position_embeddings": 64}).context_limit == 256
    assert parse(rope_scaling={"type": "dynamic", "factor": 4.0}).context_limit == 64
    longrope = parse(rope_scaling={**LONGROPE, "original_max_position_embeddings": 32})
    assert longrope.context_limit == 32
    assert any("32 of 64" in note for note in longrope.notes)
