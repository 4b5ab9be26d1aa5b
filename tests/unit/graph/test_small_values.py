"""Small tensors that a graph makes of lengths and constants, by hand."""

from typing import Any

import numpy as np
import pytest

from hybrid.graph import small_values as module
from hybrid.graph.graph import ElementType, Graph, Initializer, Node
from hybrid.graph.small_values import small_value, small_values

INT64, FP32 = ElementType.INT64, ElementType.FLOAT


def ints(*values: Any) -> np.ndarray[Any, Any]:
    return np.array(values, np.int64)


def made(op: str, *inputs: Any, domain: str = "", **attributes: Any) -> Any:
    """What one operator makes of arrays, None standing for an input that is left out; None where nothing is made."""
    names = [f"i{number}" if value is not None else "" for number, value in enumerate(inputs)]
    node = Node(op, tuple(names), ("y",), attributes, domain)
    given = {name: np.asarray(value) for name, value in zip(names, inputs, strict=True) if name}
    value = small_value(Graph("g", (node,), (), (), {}, {"": 21}), "y", given)
    return None if value is None else value.tolist()


@pytest.mark.parametrize(
    ("op", "inputs", "attributes", "expected"),
    [
        ("Add", (ints(1, 2), ints(10)), {}, [11, 12]),
        ("Sub", (ints(5), ints(7)), {}, [-2]),
        ("Mul", (ints(3), ints(4)), {}, [12]),
        ("Div", (ints(-7, 7), ints(2)), {}, [-3, 3]),  # towards 0
        ("Div", (np.float32(7), np.float32(2)), {}, 3.5),
        ("Min", (ints(3, 9), ints(5, 5), ints(4, 4)), {}, [3, 4]),
        ("Max", (ints(3, 9), ints(5, 5)), {}, [5, 9]),
        ("Equal", (ints(1, 2), ints(1)), {}, [True, False]),
        ("Greater", (ints(1, 2), ints(1)), {}, [False, True]),
        ("GreaterOrEqual", (ints(0, 1), ints(1)), {}, [False, True]),
        ("Less", (ints(0, 1), ints(1)), {}, [True, False]),
        ("LessOrEqual", (ints(1, 2), ints(1)), {}, [True, False]),
        ("And", ([True, True], [True, False]), {}, [True, False]),
        ("Or", ([False, True], [False, False]), {}, [False, True]),
        ("Where", ([True, False], ints(1), ints(2)), {}, [1, 2]),
        ("Neg", (ints(3),), {}, [-3]),
        ("Abs", (ints(-3),), {}, [3]),
        ("Not", ([True],), {}, [False]),
        ("Identity", (ints(3),), {}, [3]),
        ("Cast", (np.float32([1.7]),), {"to": 7}, [1]),
        ("Concat", (ints(1), ints(2, 3)), {"axis": 0}, [1, 2, 3]),
        ("Squeeze", ([[[1], [2]]],), {}, [1, 2]),
        ("Squeeze", ([[[1], [2]]], ints(0)), {}, [[1], [2]]),
        ("Unsqueeze", (ints(1, 2), ints(0)), {}, [[1, 2]]),
        ("Unsqueeze", (ints(1, 2),), {"axes": [1]}, [[1], [2]]),
        ("Reshape", ([[1, 2, 3, 4]], ints(2, -1)), {}, [[1, 2], [3, 4]]),
        ("Reshape", ([[1, 2]], ints(0, 2, 1)), {}, [[[1], [2]]]),  # 0 keeps a size
        ("Flatten", ([[[1, 2], [3, 4]]],), {}, [[1, 2, 3, 4]]),
        ("Flatten", ([[[1, 2], [3, 4]]],), {"axis": 2}, [[1, 2], [3, 4]]),
        ("Transpose", ([[1, 2], [3, 4]],), {}, [[1, 3], [2, 4]]),
        ("Expand", (ints(5), ints(2, 1)), {}, [[5], [5]]),
        ("ConstantOfShape", (ints(2),), {}, [0.0, 0.0]),
        ("Range", (ints(1), ints(7), ints(2)), {}, [1, 3, 5]),
        ("Slice", (ints(0, 1, 2, 3), ints(1), ints(3)), {}, [1, 2]),
        ("Slice", (ints(0, 1, 2, 3), ints(1), ints(2**63 - 1), ints(0), ints(2)), {}, [1, 3]),
        ("Slice", ([[0, 1], [2, 3]],), {"starts": [1], "ends": [2], "axes": [1]}, [[1], [3]]),
        ("Gather", (ints(5, 6, 7), ints(2, 0)), {}, [7, 5]),
        ("Gather", ([[1, 2], [3, 4]], ints(1)), {"axis": 1}, [[2], [4]]),
        ("CumSum", (ints(1, 2, 3), ints(0)), {}, [1, 3, 6]),
        ("ReduceSum", ([[1, 2], [3, 4]],), {}, [[10]]),
        ("ReduceSum", ([[1, 2], [3, 4]], ints(1)), {"keepdims": 0}, [3, 7]),
        ("ReduceSum", ([[1, 2]], None), {"noop_with_empty_axes": 1}, [[1, 2]]),
        ("ReduceMax", ([[1, 2], [3, 4]],), {"axes": [0]}, [[3, 4]]),
        ("ReduceMin", ([[1, 2], [3, 4]],), {"axes": [0], "keepdims": 0}, [1, 2]),
        ("Size", ([[1, 2], [3, 4]],), {}, 4),
        ("Shape", ([[1, 2, 3]],), {}, [1, 3]),
        ("Shape", ([[1, 2, 3]],), {"start": 1}, [3]),
        ("Shape", ([[1, 2, 3]],), {"end": 1}, [1]),
    ],
)
def test_an_operator(op: str, inputs: tuple[Any, ...], attributes: dict[str, Any], expected: Any) -> None:
    assert made(op, *inputs, **attributes) == expected


@pytest.mark.parametrize(
    ("op", "inputs", "attributes"),
    [
        ("Sqrt", (ints(4),), {}),  # not known
        ("Add", (ints(1),), {"domain": "com.microsoft"}),
        ("Add", (ints(1), ints(1), ints(1), ints(1)), {}),
        ("Concat", (ints(1),), {}),
        ("Cast", (ints(1),), {"to": int(ElementType.STRING)}),
        ("Gather", (ints(1), ints(9)), {}),
        ("CumSum", (ints(1, 2), ints(0)), {"reverse": 1}),
        ("Range", (ints(0), ints(9), ints(0)), {}),
        ("Expand", (ints(1), ints(1 << 40)), {}),
        ("ConstantOfShape", (ints(1 << 40),), {}),
        ("Range", (ints(0), ints(1 << 40), ints(1)), {}),
    ],
)
def test_what_cannot_be_or_is_too_large_is_left_out(op: str, inputs: tuple[Any, ...], attributes: Any) -> None:
    assert made(op, *inputs, **attributes) is None


def constant(name: str, kind: ElementType, array: np.ndarray[Any, Any]) -> Initializer:
    return Initializer(name, kind, array.shape, array)


def test_shapes_of_tensors_and_small_constants_are_enough() -> None:
    weights = {"two": constant("two", INT64, ints(2)), "table": constant("table", FP32, np.ones(1 << 20, np.float32))}
    nodes = (
        Node("Shape", ("past",), ("shape",), {}),
        Node("Mul", ("shape", "two"), ("doubled",), {}),
        Node("Add", ("doubled", "strange"), ("unknown",), {}),
        Node("Add", ("unknown", "two"), ("after",), {}),
        Node("Neg", ("table",), ("large",), {}),
    )
    graph = Graph("g", nodes, (), (), weights, {"": 21})
    values = small_values(graph, {}, {"past": (1, 8)})
    assert values["doubled"].tolist() == [2, 16]
    assert not {"unknown", "after", "large"} & values.keys()
    assert small_value(graph, "doubled", {}, {"past": (1, 8)}).tolist() == [2, 16]  # type: ignore[union-attr]
    assert small_value(graph, "two", {}).tolist() == [2]  # type: ignore[union-attr]
    assert small_value(graph, "table", {}) is None


def test_all_of_them_together_have_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST_ELEMENTS_IN_ALL", 5)
    nodes = tuple(Node("Neg", ("x",), (f"y{number}",), {}) for number in range(3))
    values = small_values(Graph("g", nodes, (), (), {}, {"": 21}), {"x": ints(1, 2)})
    assert values.keys() == {"x", "y0", "y1"}


def test_a_tensor_of_many_ancestors_is_not_computed() -> None:
    def chain(length: int) -> Any:
        nodes = tuple(Node("Neg", (f"t{number}",), (f"t{number + 1}",), {}) for number in range(length))
        return small_value(Graph("g", nodes, (), (), {}, {"": 21}), f"t{length}", {"t0": ints(1)})

    assert chain(300).tolist() == [1]
    assert chain(302) is None
