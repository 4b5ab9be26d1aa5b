"""Feeds of ONNX decoders by name, for two tokens after three."""

from typing import Any

import pytest

from hybrid.graph.step_feeds import FEEDS, feed, shape_of

FED: dict[str, Any] = {
    "input_ids": [[7, 9]],
    "attention_mask": [[1, 1, 1, 1, 1]],
    "position_ids": [[3, 4]],
    "cache_position": [3, 4],
    "token_type_ids": [[0, 0]],
    "beam_idx": [0],
    "num_logits_to_keep": [1],
    "logits_to_keep": [1],
    "past_sequence_length": [3],
    "past_seq_len": [3],
    "past_key_values_length": [3],
    "total_sequence_length": [5],
    "total_seq_len": [5],
    "seqlens_k": [4],
}


def test_every_feed_is_in_the_table() -> None:
    assert FED.keys() == FEEDS.keys()


@pytest.mark.parametrize("name", FED)
def test_what_is_fed(name: str) -> None:
    assert feed(name, None, [7, 9], 3).tolist() == FED[name]


@pytest.mark.parametrize(
    ("name", "shape", "fed"),
    [
        ("total_sequence_length", (), 5),
        ("total_sequence_length", (1,), [5]),
        ("input_ids", ("S",), [7, 9]),
        ("position_ids", (3, 1, "S"), [[[3, 4]]] * 3),
    ],
)
def test_a_feed_has_as_many_dimensions_as_its_input(name: str, shape: Any, fed: Any) -> None:
    assert feed(name, shape, [7, 9], 3).tolist() == fed


@pytest.mark.parametrize(
    ("name", "declared", "found"),
    [
        ("input_ids", ("batch", "sequence"), (1, "S")),
        ("input_ids", None, (1, "S")),
        ("attention_mask", ("b", "total"), (1, "T")),
        ("position_ids", (3, "b", "s"), (3, 1, "S")),
        ("position_ids", (2, "b", "s"), None),
        ("total_sequence_length", (), ()),
        ("total_sequence_length", (1,), (1,)),
        ("total_sequence_length", (1, 1), None),
        ("attention_mask", ("b", 1, "s", "t"), None),
        ("input_ids", (4, "s"), None),
    ],
)
def test_shapes_of_inputs(name: str, declared: Any, found: Any) -> None:
    assert shape_of(name, declared) == found
