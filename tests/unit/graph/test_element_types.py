"""Element types of inner tensors, from those of inputs and weights."""

from typing import Any

import pytest

from hybrid.graph.element_types import propagate_types
from hybrid.graph.graph import ElementType, Graph, Initializer, Node, TensorInfo

FP32, FP16, INT64, UINT8 = ElementType.FLOAT, ElementType.FLOAT16, ElementType.INT64, ElementType.UINT8
INPUTS = (TensorInfo("x", FP32, (1,)), TensorInfo("half", FP16, (1,)), TensorInfo("ids", INT64, (1,)))
WEIGHTS = {"bytes": Initializer("bytes", UINT8, (1,), None), "scales": Initializer("scales", FP16, (1,), None)}


def types_of(op: str, inputs: str, outputs: str = "y", **attributes: Any) -> dict[str, ElementType]:
    """The types of what one node gives, those of its inputs left out."""
    node = Node(op, tuple(inputs.split(" ")), tuple(outputs.split(" ")), attributes)
    graph = Graph("g", (node,), INPUTS, (), WEIGHTS, {"": 21})
    return {name: kind for name, kind in propagate_types(graph).items() if name not in ("x", "half", "ids", *WEIGHTS)}


@pytest.mark.parametrize(
    ("op", "inputs", "expected"),
    [
        ("Add", "half half", FP16),
        ("Less", "x x", ElementType.BOOL),
        ("ArgMax", "x", INT64),
        ("Shape", "half", INT64),
        ("Where", "ids half half", FP16),
        ("CastLike", "ids half", FP16),
        ("DequantizeLinear", "bytes scales", FP16),
        ("GatherBlockQuantized", "bytes ids scales", FP16),
        ("QuantizeLinear", "x x", UINT8),
        ("QuantizeLinear", "x x ids", INT64),
        ("MatMulInteger", "bytes bytes", ElementType.INT32),
        ("FusedMatMul", "x half", FP32),
        ("ConstantOfShape", "ids", FP32),
        ("Add", " half", FP16),  # an input that is left out says nothing
    ],
)
def test_the_type_of_an_operator(op: str, inputs: str, expected: ElementType) -> None:
    assert types_of(op, inputs) == {"y": expected}


def test_casts_and_outputs_of_several_types() -> None:
    assert types_of("Cast", "x", to=int(FP16)) == {"y": FP16}
    assert types_of("TopK", "half ids", "values indices") == {"values": FP16, "indices": INT64}
    assert types_of("DynamicQuantizeLinear", "x", "q s z") == {"q": UINT8, "s": FP32, "z": UINT8}


def test_what_is_left_out_or_cannot_be_known_has_no_type() -> None:
    assert types_of("TopK", "half ids", " indices") == {"indices": INT64}
    assert types_of("Add", "strange strange") == {}
