"""Feeds the inputs of an ONNX decoder besides the cache, by their names."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from hybrid.graph.graph import Shape

Array = npt.NDArray[Any]

# Of the new token ids and the number of tokens before them.
FEEDS: Mapping[str, Callable[[Sequence[int], int], Array]] = {
    "input_ids": lambda ids, past: np.asarray(ids, np.int64)[np.newaxis],
    "attention_mask": lambda ids, past: np.ones((1, past + len(ids))),
    "position_ids": lambda ids, past: np.arange(past, past + len(ids))[np.newaxis],
    "cache_position": lambda ids, past: np.arange(past, past + len(ids)),
    "token_type_ids": lambda ids, past: np.zeros((1, len(ids))),
    "beam_idx": lambda ids, past: np.zeros(1),
    # Logits of the last token are all that a text needs.
    "num_logits_to_keep": lambda ids, past: np.ones(1),
    "logits_to_keep": lambda ids, past: np.ones(1),
    "past_sequence_length": lambda ids, past: np.full(1, past),
    "past_seq_len": lambda ids, past: np.full(1, past),
    "past_key_values_length": lambda ids, past: np.full(1, past),
    "total_sequence_length": lambda ids, past: np.full(1, past + len(ids)),
    "total_seq_len": lambda ids, past: np.full(1, past + len(ids)),
    "seqlens_k": lambda ids, past: np.full(1, past + len(ids) - 1),
}
_RANKS = {"attention_mask": (2,), "position_ids": (1, 2, 3), "input_ids": (1, 2), "token_type_ids": (1, 2)}
_USUAL_RANKS = (0, 1)
_STREAMS = 3  # of positions in models that see images: time, height, width, all the same for text


def feed(name: str, shape: Shape | None, ids: Sequence[int], past: int) -> Array:
    """Make the array that the input `name` of this shape is fed."""
    array = FEEDS[name](ids, past)
    if shape is None or len(shape) == array.ndim:
        return array
    if len(shape) < array.ndim:
        return np.asarray(array[0])
    return np.repeat(array[np.newaxis], _STREAMS, axis=0)


def shape_of(name: str, shape: Shape | None) -> Shape | None:
    """The shape that `feed` gives an input, with "S" new tokens and "T" in all; None where it cannot feed such a shape.

    Sizes that are fixed must be those of one text: 1, or 3 streams of positions.
    """
    tokens = {
        "attention_mask": "T",
        "input_ids": "S",
        "position_ids": "S",
        "token_type_ids": "S",
        "cache_position": "S",
    }
    one, last = feed(name, shape, [0], 0).shape, tokens.get(name)
    if shape is not None and len(shape) not in _RANKS.get(name, _USUAL_RANKS):
        return None
    declared = shape or (None,) * len(one)
    if any(isinstance(dim, int) and dim != wanted for dim, wanted in zip(declared, one, strict=True)):
        return None
    return one if last is None else (*one[:-1], last)
