"""Canonical islands: equal ones of all layers are one session, their parameters inputs of it."""

import numpy as np
import pytest

from hybrid.graph.canonical import canonical
from hybrid.graph.graph import ElementType, Initializer, Node, TensorInfo
from hybrid.graph.program import Island

FP32, FP16 = ElementType.FLOAT, ElementType.FLOAT16
SHAPE = (1, "S", 64)


def scaled(layer: int, has_matmul: bool = False, dequantises: bool = False, kind: ElementType = FP32) -> Island:
    """Scale x of some layer by 64 parameters of its own, cast to float where they are stored in half."""
    names = x, scale, floats, y = tuple(f"layer{layer}.{name}" for name in ("x", "scale", "floats", "y"))
    dtype = np.float32 if kind is FP32 else np.float16
    cast = Node("Cast", (scale,), (floats,), {"to": FP32}, name=f"{layer}.cast")
    mul = Node("Mul", (x, floats if kind is FP16 else scale), (y,), {}, name=f"{layer}.mul")
    return Island(
        name="island",
        nodes=(cast, mul) if kind is FP16 else (mul,),
        inputs=(TensorInfo(x, FP32, SHAPE),),
        outputs=(TensorInfo(names[-1], FP32, SHAPE),),
        initializers=(Initializer(scale, kind, (64,), np.full(64, layer, dtype)),),
        has_matmul=has_matmul,
        dequantises=dequantises,
    )


def test_islands_of_all_layers_are_one_and_their_parameters_inputs() -> None:
    first, second = canonical(scaled(1)), canonical(scaled(2))
    assert [*map(vars, first.island.nodes)] == [*map(vars, second.island.nodes)]
    assert first.island.inputs == second.island.inputs
    assert len(first.island.inputs) == 2
    assert first.island.initializers == ()
    assert [float(p.array()[0]) for p in (*first.parameters.values(), *second.parameters.values())] == [1.0, 2.0]


@pytest.mark.parametrize(("has_matmul", "dequantises"), [(True, False), (False, True), (True, True)])
def test_weights_that_onnxruntime_prepacks_stay_in_their_island(has_matmul: bool, dequantises: bool) -> None:
    found = canonical(scaled(1, has_matmul, dequantises))
    assert found.parameters == {}
    assert len(found.island.initializers) == 1
    assert (found.island.has_matmul, found.island.dequantises) == (has_matmul, dequantises)


@pytest.mark.parametrize(("has_matmul", "dequantises"), [(True, False), (False, True)])
def test_casts_of_weights_are_left_to_onnxruntime(has_matmul: bool, dequantises: bool) -> None:
    found = canonical(scaled(1, has_matmul, dequantises, FP16))
    assert [node.op_type for node in found.island.nodes] == ["Cast", "Mul"]


def test_casts_of_parameters_are_done_once() -> None:
    found = canonical(scaled(3, kind=FP16))
    assert [node.op_type for node in found.island.nodes] == ["Mul"]
    (parameter,) = found.parameters.values()
    assert (parameter.element_type, parameter.array().tolist()) == (FP32, [3.0] * 64)
