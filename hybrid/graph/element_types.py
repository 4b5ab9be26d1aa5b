"""Element types of inner tensors, operator by operator, for the standard and the com.microsoft domains."""

from collections.abc import Callable, Mapping
from typing import Any

from hybrid.graph.graph import ElementType, Graph, Node

_BOOL_RESULT = {
    "And", "Equal", "Greater", "GreaterOrEqual", "IsInf", "IsNaN", "Less", "LessOrEqual", "Not", "Or", "Xor",
}  # fmt: skip
_INT64_RESULT = {"ArgMax", "ArgMin", "NonZero", "Shape", "Size"}
_SAME_AS_SECOND = {"CastLike", "Where"}
# Quantised operators give the type of their scales.
_SAME_AS_SCALES = {"DequantizeLinear": 1, "GatherBlockQuantized": 2}


# What the outputs of control flow are among the outputs of its body: a Loop's come after the condition.
_BODIES = {"If": ("then_branch", 0), "Loop": ("body", 1), "Scan": ("body", 0)}


def propagate_types(graph: Graph, around: Mapping[str, ElementType] | None = None) -> dict[str, ElementType]:
    """The element type of every tensor that follows from the inputs; what cannot be known is left out.

    `around` has the types of the tensors around a body.
    """
    types = dict(around or {}) | {info.name: info.element_type for info in graph.inputs}
    types |= {name: initializer.element_type for name, initializer in graph.initializers.items()}
    for node in graph.nodes:
        if node.bodies and node.op_type in _BODIES:
            types |= _types_from_body(node, types)
            continue
        for position, output in enumerate(node.outputs):
            element_type = _output_type(node, position, types.get)
            if output and element_type is not None:
                types[output] = element_type
    types |= {o.name: o.element_type for o in graph.outputs if o.element_type is not ElementType.UNDEFINED}
    return types


def _types_from_body(node: Node, around: Mapping[str, ElementType]) -> dict[str, ElementType]:
    """The types of what a control-flow node gives, which are those of what its body gives."""
    attribute, skipped = _BODIES[node.op_type]
    body = node.bodies[attribute]
    types = propagate_types(body, around)
    given = zip(node.outputs, body.outputs[skipped:], strict=False)
    return {output: types[info.name] for output, info in given if output and info.name in types}


def _output_type(node: Node, position: int, known: Callable[[str], ElementType | None]) -> ElementType | None:
    op = node.op_type
    if op == "Cast":
        return ElementType(int(node.attributes["to"]))
    if op in _BOOL_RESULT:
        return ElementType.BOOL
    if op in _INT64_RESULT or (op == "TopK" and position == 1):
        return ElementType.INT64
    if op == "ConstantOfShape":
        return _fill_type(node.attributes.get("value"))
    if op == "DynamicQuantizeLinear":
        return ElementType.FLOAT if position == 1 else ElementType.UINT8
    if op == "QuantizeLinear":
        return known(node.inputs[2]) if len(node.inputs) > 2 else ElementType.UINT8
    if op == "MatMulInteger":
        return ElementType.INT32
    if op == "FusedMatMul":  # half weights of a Hugging Face folder are multiplied by float activations
        return known(node.inputs[0])
    source = _SAME_AS_SCALES.get(op, 1 if op in _SAME_AS_SECOND else 0)
    inputs = [name for name in node.inputs[source:] if name]
    return known(inputs[0]) if inputs else None


def _fill_type(value: Any) -> ElementType:
    """ConstantOfShape fills with float zeros unless it holds a one-element tensor of another type."""
    tensor = getattr(value, "t", value)
    return ElementType(int(tensor.data_type)) if tensor is not None else ElementType.FLOAT
