"""Element types of inner tensors, operator by operator, for the standard and the com.microsoft domains."""

from collections.abc import Callable
from typing import Any

from hybrid.graph.graph import ElementType, Graph, Node

_BOOL_RESULT = {
    "And", "Equal", "Greater", "GreaterOrEqual", "IsInf", "IsNaN", "Less", "LessOrEqual", "Not", "Or", "Xor",
}  # fmt: skip
_INT64_RESULT = {"ArgMax", "ArgMin", "NonZero", "Shape", "Size"}
_SAME_AS_SECOND = {"CastLike", "Where"}
# Quantised operators give the type of their scales.
_SAME_AS_SCALES = {"DequantizeLinear": 1, "GatherBlockQuantized": 2}


def propagate_types(graph: Graph) -> dict[str, ElementType]:
    """The element type of every tensor that follows from the inputs; what cannot be known is left out."""
    types = {info.name: info.element_type for info in graph.inputs}
    types |= {name: initializer.element_type for name, initializer in graph.initializers.items()}
    for node in graph.nodes:
        for position, output in enumerate(node.outputs):
            element_type = _output_type(node, position, types.get)
            if output and element_type is not None:
                types[output] = element_type
    types |= {o.name: o.element_type for o in graph.outputs if o.element_type is not ElementType.UNDEFINED}
    return types


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
