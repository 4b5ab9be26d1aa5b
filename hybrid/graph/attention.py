"""Find the attentions that our own kernel runs just as onnxruntime would: `Graph` to `Attention`s."""

from collections.abc import Sequence
from dataclasses import dataclass

from hybrid.graph.decoder import CachePair
from hybrid.graph.graph import ElementType, Graph, Node
from offload.spec.attention import AttentionSpec

_FLOATS = (ElementType.FLOAT, ElementType.FLOAT16)
_INPUTS = 9  # query, key, value, past key, past value, lengths, total length, cos, sin; we know no others
_OUTPUTS = 3  # attended, present key, present value
_ATTRIBUTES = frozenset(
    ("num_heads", "kv_num_heads", "scale", "softcap", "local_window_size", "do_rotary", "rotary_interleaved")
)
# Attributes of other kinds of attention, at the values that leave ours as it is.
_WITHOUT = {"smooth_softmax": (0, -1), "qk_output": (0,), "kv_cache_bit_width": (0,)}


@dataclass(frozen=True)
class Attention:
    """A GroupQueryAttention that appends to a cache of full length in place, by the names of its tensors.

    `key` and `value` are "" where `query` holds all three, side by side. `cos` and `sin` are initializers, "" where
    nothing is rotated. `lengths` has the position of the last new token.
    """

    spec: AttentionSpec
    node: Node
    query: str
    key: str
    value: str
    past_key: str
    past_value: str
    lengths: str
    cos: str
    sin: str

    @property
    def output(self) -> str:
        """Name the attended values, [1, S, num_heads * head_dim]."""
        return self.node.outputs[0]


def find_attentions(graph: Graph, cache: Sequence[CachePair], context_tokens: int) -> tuple[Attention, ...]:
    """Those attentions of `graph` that can run outside onnxruntime, in running order.

    `cache` are the pairs whose past and present are one buffer that holds `context_tokens` tokens.
    """
    presents = {pair.past: pair.present for pair in cache}
    found = (_as_attention(graph, node, presents, context_tokens) for node in graph.nodes)
    return tuple(attention for attention in found if attention is not None)


def _as_attention(graph: Graph, node: Node, presents: dict[str, str], context_tokens: int) -> Attention | None:
    if (node.domain, node.op_type) != ("com.microsoft", "GroupQueryAttention") or not _is_plain(node):
        return None
    query, key, value, past_key, past_value, lengths, _, cos, sin = (*node.inputs, *[""] * _INPUTS)[:_INPUTS]
    in_place = tuple(presents.get(past) for past in (past_key, past_value)) == node.outputs[1:_OUTPUTS]
    if not in_place or any(graph.consumers.get(present) for present in node.outputs[1:_OUTPUTS]):
        return None
    if bool(key) != bool(value) or graph.constants.intersection((query, key, value, lengths)):
        return None
    types = {graph.types.get(name) for name in (query, key, value) if name}
    if len(types) != 1 or not types.issubset(_FLOATS) or graph.types.get(lengths) is not ElementType.INT32:
        return None
    spec = _spec(graph, node, past_key, past_value, cos)
    if spec is None:
        return None
    if not spec.rotary_dim:
        cos = sin = ""
    elif not all(_is_table(graph, name, context_tokens, spec) for name in (cos, sin)):
        return None
    return Attention(spec, node, query, key, value, past_key, past_value, lengths, cos, sin)


def _is_plain(node: Node) -> bool:
    """True when the node has no input, output or attribute whose meaning we do not know."""
    if len(node.inputs) <= 5 or any(node.inputs[_INPUTS:]):
        return False
    if len(node.outputs) < _OUTPUTS or any(node.outputs[_OUTPUTS:]):
        return False
    others = {name: value for name, value in node.attributes.items() if name not in _ATTRIBUTES}
    return all(value in _WITHOUT.get(name, ()) for name, value in others.items())


def _spec(graph: Graph, node: Node, past_key: str, past_value: str, cos: str) -> AttentionSpec | None:
    """Describe the node's attention; None when its caches are of unequal or unknown sizes."""
    heads, kv_heads = int(node.attributes["num_heads"]), int(node.attributes["kv_num_heads"])
    types = [graph.types.get(name) for name in (past_key, past_value)]
    shapes = [graph.shapes.get(name) for name in (past_key, past_value)]
    if types[0] != types[1] or types[0] not in _FLOATS or shapes[0] != shapes[1] or shapes[0] is None:
        return None
    head_dim = shapes[0][-1]
    if shapes[0] != (1, kv_heads, "C", head_dim) or not isinstance(head_dim, int) or heads % kv_heads:
        return None
    rotates = node.attributes.get("do_rotary", 0) == 1
    if rotates and cos not in graph.initializers:
        return None
    window = int(node.attributes.get("local_window_size", -1))
    return AttentionSpec(
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        scale=float(node.attributes.get("scale", 0.0)) or head_dim**-0.5,
        softcap=float(node.attributes.get("softcap", 0.0)),
        window=window if window > 0 else None,
        rotary_dim=2 * graph.initializers[cos].shape[-1] if rotates else 0,
        interleaved=node.attributes.get("rotary_interleaved", 0) == 1,
    )


def _is_table(graph: Graph, name: str, context_tokens: int, spec: AttentionSpec) -> bool:
    """True for cosines or sines of every position that the cache can hold."""
    table = graph.initializers.get(name)
    if table is None or table.element_type not in _FLOATS or len(table.shape) != 2:
        return False
    return table.shape[0] >= context_tokens and 2 * table.shape[1] == spec.rotary_dim <= spec.head_dim
