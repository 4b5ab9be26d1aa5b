"""The keys and values of the tokens so far. Two kinds, as the graph allows; both count in tokens."""

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

from hybrid.engine.island import Value, array_of, value_of
from hybrid.graph.cache_shape import cache_shape
from hybrid.graph.decoder import CachePair
from hybrid.graph.graph import Graph


class KvCache(Protocol):
    """The part of a cache that the engine needs."""

    @property
    def fixed(self) -> Mapping[str, Value]:
        """Inputs and outputs of the graph, by name, that stay in one place for the whole run."""

    def inputs(self) -> Mapping[str, Value]:
        """The past, for those inputs that change from step to step."""

    def update(self, outputs: Mapping[str, Value]) -> None:
        """Take over the present of a step."""

    def trim(self, length: int) -> None:
        """Forget everything behind the first `length` tokens."""


class SharedCache:
    """Past and present are one buffer of full length, appended to in place: no copy per step."""

    def __init__(self, graph: Graph, pairs: Sequence[CachePair], capacity: int) -> None:
        infos = {info.name: info for info in graph.inputs}
        self._fixed: dict[str, Value] = {}
        for pair in pairs:
            info = infos[pair.past]
            array = np.zeros(cache_shape(graph, pair, capacity), info.element_type.storage_dtype)
            self._fixed[pair.past] = self._fixed[pair.present] = value_of(array, info.element_type)

    @property
    def fixed(self) -> Mapping[str, Value]:
        return self._fixed

    def inputs(self) -> Mapping[str, Value]:
        return {}

    def update(self, outputs: Mapping[str, Value]) -> None:
        pass

    def trim(self, length: int) -> None:
        pass  # the length is given to the attention with every step


class GrowingCache:
    """The graph appends by Concat: every step writes the whole present anew."""

    def __init__(self, graph: Graph, pairs: Sequence[CachePair]) -> None:
        self._pairs = pairs
        self._types = {info.name: info.element_type for info in graph.inputs}
        self._past = {
            pair.past: self._value(pair, np.zeros(cache_shape(graph, pair, 0), self._dtype(pair))) for pair in pairs
        }

    @property
    def fixed(self) -> Mapping[str, Value]:
        return {}

    def inputs(self) -> Mapping[str, Value]:
        return self._past

    def update(self, outputs: Mapping[str, Value]) -> None:
        self._past = {pair.past: outputs[pair.present] for pair in self._pairs}

    def trim(self, length: int) -> None:
        for pair in self._pairs:  # again the same when it is called once more
            kept = array_of(self._past[pair.past])[..., :length, :]
            self._past[pair.past] = self._value(pair, np.array(kept, order="C"))

    def _dtype(self, pair: CachePair) -> np.dtype[np.generic]:
        return self._types[pair.past].storage_dtype

    def _value(self, pair: CachePair, array: np.ndarray) -> Value:  # type: ignore[type-arg]
        return value_of(array, self._types[pair.past])
