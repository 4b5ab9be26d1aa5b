"""Sizes the KV cache of a graph: its shape, its type, and what a token does with it."""

from collections.abc import Collection, Sequence
from dataclasses import replace
from math import prod

from hybrid.errors import UsageError
from hybrid.graph.decoder import CachePair, Decoder
from hybrid.graph.graph import ElementType, Graph
from offload.spec.attention import pair_flops

_TYPES = {"fp16": ElementType.FLOAT16, "fp32": ElementType.FLOAT}


def cache_shape(graph: Graph, pair: CachePair, tokens: int) -> tuple[int, ...]:
    """The shape of one cached tensor that holds `tokens` tokens: (1, num_kv_heads, tokens, head_dim)."""
    shape = next(info.shape for info in graph.inputs if info.name == pair.past)
    assert shape is not None
    return tuple(dim if isinstance(dim, int) else tokens for dim in shape)


def cache_bytes(graph: Graph, pairs: Sequence[CachePair], tokens: int) -> int:
    """RAM of the whole cache when it holds `tokens` tokens."""
    types = {info.name: info.element_type for info in graph.inputs}
    return sum(prod(cache_shape(graph, pair, tokens)) * types[pair.past].bits // 8 for pair in pairs)


def attention_flops(graph: Graph, pairs: Sequence[CachePair]) -> int:
    """Operations of one new token that sees one token, in all layers, as `pair_flops` counts them.

    What reads the cache says with how many heads; where it does not, they are those of the cache.
    """
    flops = 0
    for pair in pairs:
        *heads, head_dim = cache_shape(graph, pair, 1)
        asked = [int(reader.attributes.get("num_heads", 0)) for reader in graph.consumers.get(pair.past, [])]
        flops += pair_flops(max(asked, default=0) or prod(heads), head_dim)
    return flops // 2  # keys are one pair, values another


def cache_types(decoder: Decoder) -> set[str]:
    """Name the types of the cache, "fp16" or "fp32"; both where a graph mixes them."""
    names = {element_type: name for name, element_type in _TYPES.items()}
    pasts = {pair.past for pair in decoder.cache}
    return {names[info.element_type] for info in decoder.graph.inputs if info.name in pasts}


def with_cache_type(decoder: Decoder, kv_dtype: str, ours: Collection[str]) -> Decoder:
    """The decoder with its cache kept in "fp16" or "fp32".

    Only our own attention reads a cache of another type than the activations': `ours` are the cache's inputs that
    nothing else reads. Raises UsageError where there are others.
    """
    if kv_dtype not in _TYPES:
        raise UsageError(f"--kv-dtype {kv_dtype}: must be {' or '.join(_TYPES)}")
    theirs = [pair.past for pair in decoder.cache if pair.past not in ours]
    if theirs:
        kept = " and ".join(sorted(cache_types(decoder)))
        raise UsageError(
            f"--kv-dtype {kv_dtype}: {decoder.name} keeps its cache in {kept}, and onnxruntime runs its attention "
            f"({theirs[0]}, ...), which takes no other; leave --kv-dtype out"
        )
    graph, element_type = decoder.graph, _TYPES[kv_dtype]
    cached = {name for pair in decoder.cache for name in (pair.past, pair.present)}
    inputs, outputs = (
        tuple(replace(info, element_type=element_type) if info.name in cached else info for info in infos)
        for infos in (graph.inputs, graph.outputs)
    )
    types = {**graph.types, **dict.fromkeys(cached, element_type)}
    return replace(decoder, graph=replace(graph, inputs=inputs, outputs=outputs, types=types))
