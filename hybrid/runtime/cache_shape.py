"""How large the KV cache of a graph is."""

from collections.abc import Sequence
from math import prod

from hybrid.graph.graph import Graph
from hybrid.model.decoder import CachePair


def cache_shape(graph: Graph, pair: CachePair, tokens: int) -> tuple[int, ...]:
    """The shape of one cached tensor that holds `tokens` tokens: (1, num_kv_heads, tokens, head_dim)."""
    shape = next(info.shape for info in graph.inputs if info.name == pair.past)
    assert shape is not None
    return tuple(dim if isinstance(dim, int) else tokens for dim in shape)


def cache_bytes(graph: Graph, pairs: Sequence[CachePair], tokens: int) -> int:
    """RAM of the whole cache when it holds `tokens` tokens."""
    types = {info.name: info.element_type for info in graph.inputs}
    return sum(prod(cache_shape(graph, pair, tokens)) * types[pair.past].bits // 8 for pair in pairs)
