"""What a step is fed besides the cache: ids, positions, masks and lengths, by the name of the input."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from hybrid.graph.graph import Graph
from hybrid.runtime.island import Value, value_of

_LENGTHS = ("seqlens_k", "total_sequence_length")  # read at every layer, so they stay in one place


class StepInputs:
    """Makes the inputs of a step of `new` tokens behind `past` tokens, in the types the graph asks for."""

    def __init__(self, graph: Graph) -> None:
        self._types = {info.name: info.element_type for info in graph.inputs}
        shapes = {"seqlens_k": (1,), "total_sequence_length": ()}
        self._lengths = {
            name: np.zeros(shapes[name], self._types[name].storage_dtype) for name in _LENGTHS if name in self._types
        }

    @property
    def fixed(self) -> dict[str, Value]:
        """Inputs that are updated in place."""
        return {name: value_of(array, self._types[name]) for name, array in self._lengths.items()}

    def next(self, token_ids: Sequence[int], past: int) -> dict[str, Value]:
        """The inputs for `token_ids` when `past` tokens are in the cache."""
        total = past + len(token_ids)
        for name, array in self._lengths.items():
            array[...] = total - 1 if name == "seqlens_k" else total
        arrays: dict[str, npt.NDArray[Any]] = {
            "input_ids": np.asarray(token_ids, np.int64)[np.newaxis],
            "position_ids": np.arange(past, total)[np.newaxis],
            "attention_mask": np.ones((1, total)),
        }
        return {
            name: value_of(np.ascontiguousarray(array, self._types[name].storage_dtype), self._types[name])
            for name, array in arrays.items()
            if name in self._types
        }
