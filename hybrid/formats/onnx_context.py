"""The most tokens that an ONNX graph can take: how far its tables of positions and its masks reach."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from hybrid.formats.onnx_graph import with_types_and_shapes
from hybrid.graph.graph import Graph, Node, Shape
from hybrid.graph.small_values import Array, small_values
from hybrid.graph.step_feeds import FEEDS, feed
from hybrid.shown import show
from offload.spec.units import counted

# The inputs of rotary operators that are tables of a row for each position.
_TABLES = {
    ("com.microsoft", "GroupQueryAttention"): (7, 8),
    ("com.microsoft", "RotaryEmbedding"): (2, 3),
    ("", "RotaryEmbedding"): (1, 2),
}
_MOST_TRIES = 8
_SHORT, _LONG = 5, 9  # tokens of two steps whose needs tell how needs grow


@dataclass(frozen=True)
class ContextLimit:
    """The most tokens that something allows, and what that is."""

    tokens: int
    why: str


@dataclass(frozen=True)
class _Need:
    """The rows of a table that a step reads, by the table's name and the reading node."""

    table: str
    rows: int
    there: int


def graph_limits(graph: Graph) -> tuple[ContextLimit, ...]:
    """Find what bounds the tokens of a text in a graph whose types and shapes are known; nothing where nothing does."""
    rotary = [
        ContextLimit(rows, f"{show(name)} has {counted(rows, 'row')}")
        for node in graph.nodes
        for name in _rotary_tables(node)
        if (rows := _rows(graph, name)) is not None
    ]
    readers = [node for node in graph.nodes if _reads_table(graph, node)]
    if not readers:
        return tuple(rotary)
    short, long = _needs(graph, readers, _SHORT), _needs(graph, readers, _LONG)
    found: dict[int, dict[str, ContextLimit]] = {}
    for reader in short.keys() & long.keys():
        growth = (long[reader].rows - short[reader].rows) / (_LONG - _SHORT)
        if growth > 0:
            tokens = _LONG + int((long[reader].there - long[reader].rows) / growth)
            why = f"{show(long[reader].table)} has {counted(long[reader].there, 'row')}"
            found.setdefault(tokens, {})[reader] = ContextLimit(tokens, why)
    # Not where the need grows no further, as where distances are cut off.
    for tokens in sorted(found)[:_MOST_TRIES]:
        needs = _needs(graph, readers, tokens + 1)
        for reader, limit in found[tokens].items():
            if reader in needs and needs[reader].rows > needs[reader].there:
                return (*rotary, limit)
    return tuple(rotary)


def _rotary_tables(node: Node) -> Iterator[str]:
    places = _TABLES.get((node.domain, node.op_type), ())
    if (node.domain, node.op_type) == ("", "RotaryEmbedding") and len(node.inputs) < 4:
        return  # without positions its tables are those of the new tokens
    yield from (node.inputs[place] for place in places if place < len(node.inputs) and node.inputs[place])


def _reads_table(graph: Graph, node: Node) -> bool:
    """True for a Gather or Slice of a constant at places that are not constant, and not token ids."""
    if (node.domain, node.op_type) not in (("", "Gather"), ("", "Slice")) or node.inputs[0] not in graph.constants:
        return False
    places = node.inputs[1:]
    return not graph.constants.issuperset(name for name in places if name) and "input_ids" not in places


def _needs(graph: Graph, readers: list[Node], tokens: int) -> dict[str, _Need]:
    """Give what the readers need in a step of one token, the last of `tokens`, by what they write."""
    dims = {"S": 1, "T": tokens, "P": tokens - 1, "C": tokens}
    shapes = {info.name: _concrete(info.shape, dims) for info in graph.inputs}
    try:
        sized = with_types_and_shapes(graph, shapes)
    except ValueError:
        return {}
    known = {name: shape for name, shape in sized.shapes.items() if all(isinstance(dim, int) for dim in shape)}
    known |= {name: initializer.shape for name, initializer in graph.initializers.items()}
    given = {
        info.name: np.asarray(feed(info.name, info.shape, (0,), tokens - 1), info.element_type.storage_dtype)
        for info in graph.inputs
        if info.name in FEEDS and info.name != "input_ids"
    }
    values = small_values(graph, given, known)  # type: ignore[arg-type]
    needs = {}
    for node in readers:
        shape = known.get(node.inputs[0])
        need = None if shape is None else _need(node, shape, values)  # type: ignore[arg-type]
        if need is not None:
            needs[node.outputs[0]] = need
    return needs


def _concrete(shape: Shape | None, dims: dict[str, int]) -> Shape | None:
    return None if shape is None else tuple(dims.get(dim, dim) if isinstance(dim, str) else dim for dim in shape)


def _need(node: Node, shape: tuple[int, ...], values: dict[str, Array]) -> _Need | None:
    if node.op_type == "Gather":
        places = values.get(node.inputs[1])
        axis = int(node.attributes.get("axis", 0))
        if places is None or places.size == 0 or not -len(shape) <= axis < len(shape):
            return None
        return _Need(node.inputs[0], int(places.max()) + 1, shape[axis])
    bounds = [values.get(name) for name in node.inputs[1:3]]
    if any(bound is None for bound in bounds):
        return None
    starts, ends = (np.atleast_1d(bound) for bound in bounds if bound is not None)
    axes = values.get(node.inputs[3]) if len(node.inputs) > 3 and node.inputs[3] else np.arange(len(starts))
    if axes is None or not all(-len(shape) <= axis < len(shape) for axis in axes):
        return None
    needs = [
        _Need(node.inputs[0], rows, shape[int(axis)])
        for start, end, axis in zip(starts, ends, axes, strict=False)
        if (rows := max(int(end) if int(end) < 1 << 31 else 0, -int(start)))
    ]
    return max(needs, key=lambda need: need.rows - need.there, default=None)


def _rows(graph: Graph, name: str) -> int | None:
    """The rows of a table; the most where a branch chooses one of two."""
    producer = graph.producers.get(name)
    if producer is not None and producer.bodies:
        place = producer.outputs.index(name)
        chosen = [(body, body.outputs[place].name) for body in producer.bodies.values() if place < len(body.outputs)]
        rows = [body.initializers[inner].shape[0] for body, inner in chosen if inner in body.initializers]
        return max(rows, default=None)
    shape = graph.initializers[name].shape if name in graph.initializers else graph.shapes.get(name)
    return shape[0] if shape and isinstance(shape[0], int) else None
