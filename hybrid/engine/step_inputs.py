"""Feeds a step besides the cache: ids, positions, masks and lengths, by the name of the input."""

from collections.abc import Sequence

import numpy as np

from hybrid.engine.island import Value, constant_value, value_of
from hybrid.graph.decoder import Switch
from hybrid.graph.graph import Graph
from hybrid.graph.step_feeds import FEEDS, feed

_LENGTHS = ("seqlens_k", "total_sequence_length")  # read at every layer, so they stay in one place


class StepInputs:
    """Makes the inputs of a step of `new` tokens behind `past` tokens, in the types the graph asks for."""

    def __init__(self, graph: Graph, switches: Sequence[Switch] = ()) -> None:
        self._switched = [
            [{name: constant_value(i) for name, i in inputs.items()} for inputs in (switch.before, switch.after)]
            for switch in switches
        ]
        self._infos = {info.name: info for info in graph.inputs if info.name in FEEDS}
        self._lengths = {
            name: np.zeros_like(feed(name, info.shape, (0,), 0), info.element_type.storage_dtype)
            for name, info in self._infos.items()
            if name in _LENGTHS
        }

    @property
    def fixed(self) -> dict[str, Value]:
        """Inputs that are updated in place."""
        return {name: value_of(array, self._infos[name].element_type) for name, array in self._lengths.items()}

    def next(self, token_ids: Sequence[int], past: int, switched: Sequence[bool] = ()) -> dict[str, Value]:
        """The inputs for `token_ids` when `past` tokens are in the cache of a text that is behind these switches."""
        values: dict[str, Value] = {}
        for choices, behind in zip(self._switched, switched, strict=True):
            values |= choices[behind]
        for name, info in self._infos.items():
            array = feed(name, info.shape, token_ids, past)
            if name in self._lengths:
                self._lengths[name][...] = array
            else:
                stored = np.ascontiguousarray(array, info.element_type.storage_dtype).reshape(array.shape)
                values[name] = value_of(stored, info.element_type)
        return values
