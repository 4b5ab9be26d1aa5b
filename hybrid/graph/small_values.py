"""Compute what a graph makes of lengths, masks and positions: the small tensors that decide how far it reaches.

Only a few harmless operators are known, sizes are bounded, and whatever cannot be computed is left out; so graphs of
strangers may be looked through.
"""

import functools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from hybrid.graph.graph import ElementType, Graph, Initializer, Node

Array = npt.NDArray[Any]

_MOST_ELEMENTS = 1 << 22  # of one tensor
_MOST_ELEMENTS_IN_ALL = 1 << 24
_MOST_ANCESTORS = 300
_CONSTANT_BYTES = 64 * 1024  # larger ones are weights and tables
_PLAIN = (ElementType.FLOAT, ElementType.INT32, ElementType.INT64, ElementType.BOOL, ElementType.DOUBLE)


def small_value(
    graph: Graph, name: str, given: Mapping[str, Array], shapes: Mapping[str, tuple[int, ...]] | None = None
) -> Array | None:
    """One tensor, as `small_values` has it; None where it cannot be computed."""
    if name in graph.initializers:
        return graph.initializers[name].array() if _is_small(graph.initializers[name]) else None
    return small_values(replace(graph, nodes=_ancestors(graph, name)), given, shapes).get(name)


def small_values(
    graph: Graph, given: Mapping[str, Array], shapes: Mapping[str, tuple[int, ...]] | None = None
) -> dict[str, Array]:
    """The tensors that follow from the inputs `given`, from the `shapes` of others and from small constants."""
    read = {name for node in graph.nodes for name in node.inputs if name in graph.initializers}
    values = {name: graph.initializers[name].array() for name in read if _is_small(graph.initializers[name])}
    values |= given
    known = dict(shapes or {})
    elements = 0
    for node in graph.nodes:
        try:
            made = _computed(node, values, known)
        except (ArithmeticError, AttributeError, IndexError, KeyError, TypeError, ValueError):
            continue  # not what the operator takes, or too large
        elements += made.size if made is not None else 0
        if elements > _MOST_ELEMENTS_IN_ALL:
            return values
        if made is not None:
            values[node.outputs[0]] = made
    return values


def _ancestors(graph: Graph, name: str) -> tuple[Node, ...]:
    """The nodes that a tensor is made by, in running order; none where they are many."""
    found: dict[int, Node] = {}
    entered: set[int] = set()
    waiting = [name]
    while waiting and len(entered) <= _MOST_ANCESTORS:
        node = graph.producers.get(waiting[-1])
        if node is None or id(node) in found:
            waiting.pop()
        elif id(node) in entered:  # what it reads is there
            found[id(node)] = node
        else:
            entered.add(id(node))
            waiting += node.reads
    return tuple(found.values()) if not waiting else ()


def _is_small(initializer: Initializer) -> bool:
    known = initializer.source is not None and initializer.element_type in _PLAIN
    return known and initializer.nbytes <= _CONSTANT_BYTES


def _computed(node: Node, values: Mapping[str, Array], shapes: Mapping[str, tuple[int, ...]]) -> Array | None:
    if node.domain:
        return None
    if node.op_type in ("Shape", "Size"):
        name = node.inputs[0]
        shape = values[name].shape if name in values else shapes[name]
        if node.op_type == "Size":
            return np.asarray(prod(shape), np.int64)
        return np.asarray(shape, np.int64)[node.attributes.get("start", 0) : node.attributes.get("end")]
    operator = _OPERATORS.get(node.op_type)
    if operator is None or any(name and name not in values for name in node.inputs):
        return None
    inputs = [values[name] if name else None for name in node.inputs]
    if node.op_type in _ELEMENTWISE:
        _check_size(np.broadcast_shapes(*(array.shape for array in inputs if array is not None)))
    with np.errstate(all="ignore"):
        return np.asarray(operator(node, inputs))


def _check_size(shape: Iterable[int]) -> None:
    if prod(int(dim) for dim in shape) > _MOST_ELEMENTS:
        raise ValueError("too large to be computed")


def _cast(node: Node, inputs: list[Any]) -> Array:
    element_type = ElementType(int(node.attributes["to"]))
    if element_type not in _PLAIN:
        raise ValueError("not a plain type")
    return np.asarray(inputs[0].astype(element_type.storage_dtype))


def _divided(node: Node, inputs: list[Any]) -> Array:
    a, b = inputs
    if a.dtype.kind == "f":
        return np.asarray(a / b)
    return np.asarray(np.trunc(a / b).astype(a.dtype))


def _axes(node: Node, inputs: list[Any]) -> tuple[int, ...] | None:
    """The axes of an operator that takes them as an attribute or, since opset 13, as its second input."""
    axes = inputs[1] if len(inputs) > 1 and inputs[1] is not None else node.attributes.get("axes")
    return None if axes is None or len(axes) == 0 else tuple(int(axis) for axis in axes)


def _reduced(reduce: Callable[..., Any]) -> Callable[[Node, list[Any]], Array]:
    def run(node: Node, inputs: list[Any]) -> Array:
        if _axes(node, inputs) is None and node.attributes.get("noop_with_empty_axes", 0):
            return np.asarray(inputs[0])
        array = inputs[0]
        made = reduce(array, axis=_axes(node, inputs), keepdims=bool(node.attributes.get("keepdims", 1)))
        return np.asarray(made).astype(array.dtype)

    return run


def _unsqueezed(node: Node, inputs: list[Any]) -> Array:
    axes = _axes(node, inputs)
    assert axes is not None
    return np.asarray(np.expand_dims(inputs[0], axes))


def _squeezed(node: Node, inputs: list[Any]) -> Array:
    return np.asarray(np.squeeze(inputs[0], _axes(node, inputs)))


def _reshaped(node: Node, inputs: list[Any]) -> Array:
    array, shape = inputs
    dims = [array.shape[i] if dim == 0 and not node.attributes.get("allowzero") else dim for i, dim in enumerate(shape)]
    return np.asarray(array.reshape([int(dim) for dim in dims]))


def _expanded(node: Node, inputs: list[Any]) -> Array:
    shape = np.broadcast_shapes(inputs[0].shape, tuple(int(dim) for dim in inputs[1]))
    _check_size(shape)
    return np.broadcast_to(inputs[0], shape)


def _filled(node: Node, inputs: list[Any]) -> Array:
    _check_size(inputs[0])
    value = getattr(node.attributes.get("value"), "t", None)
    if value is None:
        return np.zeros(inputs[0], np.float32)
    dtype = ElementType(int(value.data_type)).storage_dtype
    data = (
        np.frombuffer(value.raw_data, dtype) if value.raw_data else np.asarray([*value.int64_data, *value.int32_data])
    )
    return np.full(inputs[0], data[0], dtype)


def _ranged(node: Node, inputs: list[Any]) -> Array:
    start, limit, delta = (array.reshape(-1)[0] for array in inputs)
    _check_size([max(0, int((limit - start) / delta))])
    return np.arange(start, limit, delta, dtype=inputs[0].dtype)


def _sliced(node: Node, inputs: list[Any]) -> Array:
    data, starts, ends, axes, steps = (*inputs, None, None, None, None)[:5]
    starts = node.attributes["starts"] if starts is None else starts
    ends = node.attributes["ends"] if ends is None else ends
    axes = node.attributes.get("axes", range(len(starts))) if axes is None else axes
    steps = [1] * len(starts) if steps is None else steps
    cuts = [slice(None)] * data.ndim
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        cuts[int(axis)] = slice(int(start), int(end) if abs(int(end)) < 1 << 62 else None, int(step))
    return np.asarray(data[tuple(cuts)])


def _gathered(node: Node, inputs: list[Any]) -> Array:
    data, indices = inputs
    axis = int(node.attributes.get("axis", 0))
    _check_size([data.size, indices.size] if data.ndim > 1 else [indices.size])
    return np.asarray(np.take(data, indices, axis))


def _summed(node: Node, inputs: list[Any]) -> Array:
    if node.attributes.get("exclusive", 0) or node.attributes.get("reverse", 0):
        raise ValueError("another way to sum")
    return np.asarray(np.cumsum(inputs[0], int(inputs[1].reshape(-1)[0]), dtype=inputs[0].dtype))


def _joined(node: Node, inputs: list[Any]) -> Array:
    _check_size([sum(array.size for array in inputs)])
    return np.asarray(np.concatenate(inputs, int(node.attributes["axis"])))


def _of(function: Callable[..., Any]) -> Callable[[Node, list[Any]], Array]:
    return lambda node, inputs: np.asarray(function(*inputs))


_ELEMENTWISE: dict[str, Callable[[Node, list[Any]], Array]] = {
    "Add": _of(np.add),
    "Sub": _of(np.subtract),
    "Mul": _of(np.multiply),
    "Div": _divided,
    "Min": lambda node, inputs: np.asarray(functools.reduce(np.minimum, inputs)),
    "Max": lambda node, inputs: np.asarray(functools.reduce(np.maximum, inputs)),
    "Equal": _of(np.equal),
    "Greater": _of(np.greater),
    "GreaterOrEqual": _of(np.greater_equal),
    "Less": _of(np.less),
    "LessOrEqual": _of(np.less_equal),
    "And": _of(np.logical_and),
    "Or": _of(np.logical_or),
    "Where": _of(np.where),
}
_OPERATORS: dict[str, Callable[[Node, list[Any]], Array]] = _ELEMENTWISE | {
    "Identity": lambda node, inputs: np.asarray(inputs[0]),
    "Neg": _of(np.negative),
    "Abs": _of(np.abs),
    "Not": _of(np.logical_not),
    "Cast": _cast,
    "Concat": _joined,
    "Squeeze": _squeezed,
    "Unsqueeze": _unsqueezed,
    "Reshape": _reshaped,
    "Flatten": lambda node, inputs: inputs[0].reshape(
        prod(inputs[0].shape[: node.attributes.get("axis", 1)]), prod(inputs[0].shape[node.attributes.get("axis", 1) :])
    ),
    "Transpose": lambda node, inputs: np.transpose(inputs[0], node.attributes.get("perm")),
    "Expand": _expanded,
    "ConstantOfShape": _filled,
    "Range": _ranged,
    "Slice": _sliced,
    "Gather": _gathered,
    "CumSum": _summed,
    "ReduceSum": _reduced(np.sum),
    "ReduceMax": _reduced(np.max),
    "ReduceMin": _reduced(np.min),
}
