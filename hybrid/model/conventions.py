"""Which inputs of an ONNX decoder are ids, mask, positions and past, which outputs are logits and present.

Conventions are told apart by the names that their exporters use:

    onnxstream   pkv0, pkv1, ... (key, value of layer 0, ...)      -> opkv0, opkv1, ...
    optimum      past_key_values.0.key, past_key_values.0.value     -> present.0.key, present.0.value
    genai        the same names, with GroupQueryAttention inside
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from hybrid.errors import ModelFileError, UnsupportedModelError
from hybrid.graph.branches import pruned, with_branches_taken
from hybrid.graph.graph import ElementType, Graph, Initializer, Shape, TensorInfo
from hybrid.graph.small_values import small_value
from hybrid.model.decoder import CachePair, Decoder
from hybrid.model.onnx_graph import read_graph, with_types_and_shapes
from hybrid.model.source import ModelFolder, show

LOGITS = "logits"
CACHE_SWITCH = "use_cache_branch"  # of decoders that are merged out of one without and one with a past
_ID_INPUTS = ("input_ids", "attention_mask", "position_ids")
_FLOATS = (ElementType.FLOAT, ElementType.FLOAT16)


@dataclass(frozen=True)
class _CacheNames:
    convention: str
    past: re.Pattern[str]
    present: str  # with the groups of `past`


_CACHES = (
    _CacheNames("onnxstream", re.compile(r"pkv(\d+)"), "opkv{0}"),
    _CacheNames("optimum", re.compile(r"past_key_values\.(\d+)\.(key|value)"), "present.{0}.{1}"),
)


def open_onnx(source: ModelFolder) -> Decoder:
    """Open an ONNX decoder. Raises UnsupportedModelError, naming the inputs, for a convention we don't know."""
    if source.onnx is None:
        raise ModelFileError(f"{source.folder}: no .onnx file")
    path = source.onnx
    graph = read_graph(path)
    convention, cache = _cache_pairs(graph, path)
    graph = _with_branches_taken(graph, cache)
    _check_ids(graph, path)
    shared = _attention_shares_cache(graph, cache)
    shapes = {info.name: _input_shape(graph, info, cache, shared, path) for info in graph.inputs}
    try:
        graph = with_types_and_shapes(graph, shapes)
    except ValueError as error:
        raise ModelFileError(f"{path}: shapes that do not fit each other ({show(str(error), 200)})") from None
    config = source.config or {}
    logits = next(info for info in graph.outputs if info.name == LOGITS)
    last_dim = (graph.shapes.get(LOGITS) or logits.shape or (None,))[-1]
    vocab_size = last_dim if isinstance(last_dim, int) else _whole_number(config.get("vocab_size"))
    return Decoder(
        name=source.folder.name,
        folder=source.folder,
        graph=graph,
        architecture=f"onnx ({'genai' if shared else convention})",
        vocab_size=vocab_size,
        context_limit=_whole_number(config.get("max_position_embeddings")) or _rotary_positions(graph),
        eos_token_ids=_ids(config.get("eos_token_id")),
        bos_token_id=next(iter(_ids(config.get("bos_token_id"))), None),
        cache=cache,
        shared_cache=shared,
    )


def _cache_pairs(graph: Graph, path: Path) -> tuple[str, tuple[CachePair, ...]]:
    inputs = [info.name for info in graph.inputs]
    outputs = {info.name for info in graph.outputs}
    if LOGITS not in outputs:
        raise UnsupportedModelError(f"{path}: no output named logits; the outputs are {_listing(sorted(outputs))}")
    for names in _CACHES:
        matches = [match for match in map(names.past.fullmatch, inputs) if match]
        if not matches:
            continue
        ordered = sorted(matches, key=lambda match: (int(match[1]), match[0]))
        pairs = tuple(CachePair(match[0], names.present.format(*match.groups())) for match in ordered)
        missing = [pair for pair in pairs if pair.present not in outputs]
        if missing:
            raise UnsupportedModelError(
                f"{path}: input {missing[0].past} has no output {missing[0].present} to carry it on"
            )
        return names.convention, pairs
    raise UnsupportedModelError(
        f"{path}: no cache inputs we know (pkv0 or past_key_values.0.key); the inputs are {_listing(inputs)}"
    )


def _with_branches_taken(graph: Graph, cache: Sequence[CachePair]) -> Graph:
    """The graph that reads its cache, without the branches that it then never takes and the outputs nobody asks for.

    `use_cache_branch` becomes a constant: true, unless it is the other branch that reads the cache.
    """
    outputs = (LOGITS, *(pair.present for pair in cache))
    switch = next((info for info in graph.inputs if info.name == CACHE_SWITCH), None)
    if switch is None:
        return pruned(with_branches_taken(graph, _decided), outputs)
    shape = tuple(dim if isinstance(dim, int) else 1 for dim in switch.shape or ())
    inputs = tuple(info for info in graph.inputs if info is not switch)
    merged = []
    for value in (True, False):
        constant = Initializer(CACHE_SWITCH, ElementType.BOOL, shape, np.full(shape, value))
        chosen = replace(graph, inputs=inputs, initializers={**graph.initializers, CACHE_SWITCH: constant})
        merged.append(pruned(with_branches_taken(chosen, _decided), outputs))
    return next((g for g in merged if all(pair.past in g.consumers for pair in cache)), merged[0])


def _decided(graph: Graph, condition: str) -> bool | None:
    """What a condition of constants is."""
    value = small_value(graph, condition, {})
    return None if value is None or value.size != 1 else bool(value.reshape(-1)[0])


def _check_ids(graph: Graph, path: Path) -> None:
    names = {info.name for info in graph.inputs}
    if "input_ids" not in names:
        raise UnsupportedModelError(f"{path}: no input named input_ids; the inputs are {_listing(sorted(names))}")
    for info in graph.inputs:
        known_cache = any(names.past.fullmatch(info.name) for names in _CACHES)
        if info.name not in _ID_INPUTS and not known_cache:
            raise UnsupportedModelError(f"{path}: don't know how to feed input {info.name!r}")
        if known_cache and info.element_type not in _FLOATS:
            raise UnsupportedModelError(f"{path}: cache input {info.name!r} is {info.element_type.name}, not a float")


def _attention_shares_cache(graph: Graph, cache: Sequence[CachePair]) -> bool:
    """True when every past and present belongs to one GroupQueryAttention, which appends in place."""
    for pair in cache:
        readers = graph.consumers.get(pair.past, [])
        writer = graph.producers.get(pair.present)
        if len(readers) != 1 or readers[0] is not writer or writer.op_type != "GroupQueryAttention":
            return False
    return True


def _input_shape(graph: Graph, info: TensorInfo, cache: Sequence[CachePair], shared: bool, path: Path) -> Shape | None:
    if info.name in ("input_ids", "position_ids"):
        return (1, "S")
    if info.name == "attention_mask":
        return (1, "T")
    if info.name not in {pair.past for pair in cache}:
        return info.shape
    heads, size = (info.shape[1], info.shape[3]) if info.shape is not None and len(info.shape) == 4 else (None, None)
    if not isinstance(size, int):
        size = _rotary_head_size(graph, info.name)
    if not isinstance(heads, int) or size is None:
        raise UnsupportedModelError(f"{path}: cache input {info.name!r} is {info.shape}, not (1, heads, past, size)")
    return (1, heads, "C" if shared else "P", size)


def _rotary_positions(graph: Graph) -> int:
    """The positions that every fused rotary table has; 0 when there is none."""
    tables = [
        graph.initializers[node.inputs[7]].shape[0]
        for node in graph.nodes
        if node.op_type == "GroupQueryAttention" and len(node.inputs) > 7 and node.inputs[7] in graph.initializers
    ]
    return min(tables, default=0)


def _rotary_head_size(graph: Graph, past: str) -> int | None:
    """The head size as the attention that reads `past` has it: its cos table is [positions, size / 2]."""
    for node in graph.consumers.get(past, []):
        if node.op_type == "GroupQueryAttention" and len(node.inputs) > 7 and node.inputs[7] in graph.initializers:
            return 2 * graph.initializers[node.inputs[7]].shape[-1]
    return None


def _listing(names: Sequence[str]) -> str:
    shown = ", ".join(name if name.isprintable() else ascii(name) for name in names[:8])
    return shown + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def _whole_number(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0


def _ids(value: Any) -> tuple[int, ...]:
    values = value if isinstance(value, list) else [value]
    return tuple(v for v in values if isinstance(v, int) and not isinstance(v, bool) and v >= 0)
