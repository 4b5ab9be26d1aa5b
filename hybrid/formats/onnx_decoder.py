"""Which inputs of an ONNX decoder are ids, mask, positions and past, which outputs are logits and present.

Conventions are told apart by the names that their exporters use:

    onnxstream   pkv0, pkv1, ... (key, value of layer 0, ...)      -> opkv0, opkv1, ...
    optimum      past_key_values.0.key, past_key_values.0.value     -> present.0.key, present.0.value
    genai        the same names, with GroupQueryAttention inside
    gpt2         past_0, past_1, ... (keys and values of a layer)   -> present_0, present_1, ...

A genai_config.json may give other names; then they are changed to these.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from hybrid.errors import ModelFileError, UnsupportedModelError
from hybrid.formats.genai_config import GenaiConfig, parse_genai_config
from hybrid.formats.onnx_context import ContextLimit, graph_limits
from hybrid.formats.onnx_graph import read_graph, with_types_and_shapes
from hybrid.formats.onnx_switches import with_switches
from hybrid.formats.onnx_validation import check_ranks, check_sizes
from hybrid.graph.branches import pruned, with_branches_taken
from hybrid.graph.decoder import CachePair, Decoder, Switch
from hybrid.graph.find import find_linears
from hybrid.graph.graph import ElementType, Graph, Initializer, Node, Shape, TensorInfo
from hybrid.graph.rename import renamed_graph
from hybrid.graph.small_values import small_value
from hybrid.graph.step_feeds import FEEDS, shape_of
from hybrid.shown import show
from hybrid.source.folder import GENAI_CONFIG, ModelFolder
from offload.spec.units import counted

LOGITS = "logits"
CACHE_SWITCH = "use_cache_branch"  # of decoders that are merged out of one without and one with a past
_FLOATS = (ElementType.FLOAT, ElementType.FLOAT16)
_CONTEXT_KEYS = (
    "max_position_embeddings", "n_positions", "n_ctx", "seq_length", "max_sequence_length", "max_seq_len"
)  # fmt: skip


@dataclass(frozen=True)
class _CacheNames:
    convention: str
    past: re.Pattern[str]
    present: str  # with the groups of `past`


_CACHES = (
    _CacheNames("onnxstream", re.compile(r"pkv(\d+)"), "opkv{0}"),
    _CacheNames("optimum", re.compile(r"past_key_values\.(\d+)\.(key|value)"), "present.{0}.{1}"),
    _CacheNames("gpt2", re.compile(r"past_(\d+)"), "present_{0}"),
)


def open_onnx(source: ModelFolder, context_tokens: int) -> Decoder:
    """Open an ONNX decoder for a context of at most `context_tokens`.

    Raises UnsupportedModelError, naming the inputs, for a convention we don't know.
    """
    if source.onnx is None:
        raise ModelFileError(f"{source.folder}: no .onnx file")
    path = source.onnx
    genai = parse_genai_config(source.genai_config, source.folder / GENAI_CONFIG)
    graph = _with_our_names(read_graph(path), genai)
    convention, cache = _cache_pairs(graph, path)
    is_merged = any(info.name == CACHE_SWITCH for info in graph.inputs)
    graph = _with_branches_taken(graph, cache)
    graph = _without_unread_inputs(graph, cache)
    _check_inputs(graph, cache, path)
    shared = _attention_shares_cache(graph, cache)
    config = source.config or {}
    sizes = _CacheSizes(graph, genai, config, path)
    pasts = {pair.past for pair in cache}
    shapes = {
        info.name: sizes.shape(info, "C" if shared else "P") if info.name in pasts else shape_of(info.name, info.shape)
        for info in graph.inputs
    }
    one_by_one = any(info.name == "input_ids" and (info.shape or (0,))[-1] == 1 for info in graph.inputs)
    try:
        graph = with_types_and_shapes(graph, shapes)
    except ValueError as error:
        raise ModelFileError(f"{path}: shapes that do not fit each other ({show(str(error), 200)})") from None
    check_ranks(graph, path)
    check_sizes(graph, path)
    limit = _context_limit(graph, genai, config)
    switches: tuple[Switch, ...] = ()
    if any(node.op_type == "If" for node in graph.nodes):
        graph, switches = with_switches(graph, min(context_tokens, limit.tokens or context_tokens))
        limit = min(limit, _context_limit(graph, genai, config), key=lambda limit: limit.tokens or context_tokens)
    if shared:
        graph = _with_full_caches(graph, min(context_tokens, limit.tokens or context_tokens))
    logits = next(info for info in graph.outputs if info.name == LOGITS)
    last_dim = (graph.shapes.get(LOGITS) or logits.shape or (None,))[-1]
    vocab_size = last_dim if isinstance(last_dim, int) else _whole_number(config.get("vocab_size")) or genai.vocab_size
    bos = next(iter(_ids(config.get("bos_token_id"))), None)
    return Decoder(
        name=source.folder.name,
        folder=source.folder,
        graph=graph,
        architecture=f"onnx ({'genai' if shared else convention})",
        vocab_size=vocab_size,
        context_limit=limit.tokens,
        eos_token_ids=_ids(config.get("eos_token_id")) or genai.eos_token_ids,
        bos_token_id=genai.bos_token_id if bos is None else bos,
        cache=cache,
        shared_cache=shared,
        notes=(*sizes.notes, *(_switch_note(switch) for switch in switches)),
        limited_by=limit.why,
        most_new_tokens=1 if one_by_one else 0,
        is_merged=is_merged,
        switches=switches,
    )


def _switch_note(switch: Switch) -> str:
    return (
        f"texts of {counted(switch.first, 'token')} and more are read another way by this model: "
        "one that grows to that is read once more, from its beginning"
    )


def _with_our_names(graph: Graph, genai: GenaiConfig) -> Graph:
    """The graph with the names of this file for its inputs and outputs."""
    names = genai.renames([info.name for info in (*graph.inputs, *graph.outputs)])
    # What has a name of ours already and is something else gets another.
    return renamed_graph(graph, {ours: f"{ours}/inner" for ours in names.values()} | names) if names else graph


def _context_limit(graph: Graph, genai: GenaiConfig, config: Mapping[str, Any]) -> ContextLimit:
    """The tightest bound of the graph's own and of what its makers say; 0 tokens where there is none."""
    text = config.get("text_config")
    limits = [*graph_limits(graph), ContextLimit(genai.context_length, f"context_length in {GENAI_CONFIG}")]
    for section in (config, text if isinstance(text, dict) else {}):
        limits += [ContextLimit(_whole_number(section.get(key)), f"{key} in config.json") for key in _CONTEXT_KEYS]
    return min((limit for limit in limits if limit.tokens), key=lambda limit: limit.tokens, default=ContextLimit(0, ""))


def _with_full_caches(graph: Graph, context_tokens: int) -> Graph:
    """The graph with attentions that expect what our caches are: as long as the context, whatever the window.

    A window that is no shorter than the context hides nothing.
    """
    nodes = []
    for node in graph.nodes:
        if node.op_type == "GroupQueryAttention":
            attributes = {name: value for name, value in node.attributes.items() if name != "sliding_window_cache"}
            if attributes.get("local_window_size", -1) >= context_tokens:
                attributes["local_window_size"] = -1
            node = replace(node, attributes=attributes)
        nodes.append(node)
    return replace(graph, nodes=tuple(nodes))


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
    """Evaluate a condition of constants."""
    value = small_value(graph, condition, {})
    return None if value is None or value.size != 1 else bool(value.reshape(-1)[0])


def _without_unread_inputs(graph: Graph, cache: Sequence[CachePair]) -> Graph:
    """The graph without inputs that nothing reads, except those of the cache."""
    read = {*graph.consumers, *(info.name for info in graph.outputs), *(pair.past for pair in cache), "input_ids"}
    return replace(graph, inputs=tuple(info for info in graph.inputs if info.name in read))


def _check_inputs(graph: Graph, cache: Sequence[CachePair], path: Path) -> None:
    pasts = {pair.past for pair in cache}
    names = [info.name for info in graph.inputs]
    if "input_ids" not in names:
        raise UnsupportedModelError(f"{path}: no input named input_ids; the inputs are {_listing(sorted(names))}")
    for info in graph.inputs:
        if info.name in pasts:
            if info.element_type not in _FLOATS:
                raise UnsupportedModelError(
                    f"{path}: cache input {info.name!r} is {info.element_type.name}, not a float"
                )
        elif info.name not in FEEDS:
            raise UnsupportedModelError(f"{path}: don't know how to feed input {info.name!r}")
        elif shape_of(info.name, info.shape) is None:
            raise UnsupportedModelError(
                f"{path}: input {info.name!r} is {info.shape}, not of any number of tokens of one text;"
                " export it with dynamic axes"
            )


def _attention_shares_cache(graph: Graph, cache: Sequence[CachePair]) -> bool:
    """True when every past and present belongs to one GroupQueryAttention, which appends in place."""
    for pair in cache:
        readers = graph.consumers.get(pair.past, [])
        writer = graph.producers.get(pair.present)
        if len(readers) != 1 or readers[0] is not writer or writer.op_type != "GroupQueryAttention":
            return False
    return True


class _CacheSizes:
    """Heads and head size of the cache: as the graph declares or computes them, else as its makers say."""

    def __init__(self, graph: Graph, genai: GenaiConfig, config: Mapping[str, Any], path: Path) -> None:
        self._graph, self._genai, self._config, self._path = graph, genai, config, path
        self._widths = {linear.output: linear.spec.out_features for linear in find_linears(graph)}
        self._notes: dict[str, None] = {}

    @property
    def notes(self) -> tuple[str, ...]:
        """List what contradicts the graph, after all shapes have been asked for."""
        return tuple(self._notes)

    def shape(self, info: TensorInfo, tokens: str) -> Shape:
        """The shape of a cache input, with `tokens` for the axis of the past. Raises UnsupportedModelError."""
        declared = info.shape or ()
        together = () if len(declared) == 4 else declared[:1]  # old exports have keys and values in one
        batch, heads, past, size = declared[len(together) :] if len(declared) in (4, 5) else (None,) * 4
        node = next((n for n in self._graph.consumers.get(info.name, ()) if n.op_type == "GroupQueryAttention"), None)
        if not isinstance(heads, int):
            heads = int(node.attributes["kv_num_heads"]) if node is not None else self._genai.num_key_value_heads
        if not isinstance(size, int):
            size = (self._projected(node) if node is not None else 0) or self._genai.head_size or self._configured()
        fits = (
            (not together or together == (2,))
            and len(declared) in (4, 5)
            and (batch == 1 or not isinstance(batch, int))
        )
        if not fits or isinstance(past, int) or not heads or not size:
            raise UnsupportedModelError(
                f"{self._path}: cache input {info.name!r} is {info.shape}, not (1, heads, past, size)"
            )
        if self._genai.head_size not in (0, size):
            self._notes[f"{GENAI_CONFIG} has a head_size of {self._genai.head_size}, the graph has {size}"] = None
        return (*together, 1, heads, tokens, size)

    def _projected(self, node: Node) -> int:
        """The head size that the projections before an attention give; 0 where they cannot be seen.

        Never that of a rotary table, which may turn a part of a head only.
        """
        kv_heads = int(node.attributes["kv_num_heads"])
        packed = not node.inputs[2]
        name = node.inputs[0] if packed else node.inputs[2]
        while name not in self._widths:
            producer = self._graph.producers.get(name)
            if producer is None or producer.op_type not in ("Add", "Cast", "Identity"):
                return 0
            name = next((i for i in producer.inputs if i not in self._graph.constants), "")
        return self._widths[name] // (kv_heads * 2 + int(node.attributes["num_heads"]) if packed else kv_heads)

    def _configured(self) -> int:
        size = _whole_number(self._config.get("head_dim"))
        hidden, heads = (_whole_number(self._config.get(key)) for key in ("hidden_size", "num_attention_heads"))
        return size or (hidden // heads if heads else 0)


def _listing(names: Sequence[str]) -> str:
    shown = ", ".join(name if name.isprintable() else ascii(name) for name in names[:8])
    return shown + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def _whole_number(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0


def _ids(value: Any) -> tuple[int, ...]:
    values = value if isinstance(value, list) else [value]
    return tuple(v for v in values if isinstance(v, int) and not isinstance(v, bool) and v >= 0)
