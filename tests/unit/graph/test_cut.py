"""The cut by levels: what goes to which island, what crosses, what is fed. Graphs are plain data here."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hybrid.errors import UnsupportedModelError
from hybrid.graph.cut import cut
from hybrid.graph.element_types import propagate_types
from hybrid.graph.find import find_linears
from hybrid.graph.graph import ElementType, Graph, Initializer, Node, TensorInfo
from hybrid.graph.program import Program

FP32, FP16, INT64 = ElementType.FLOAT, ElementType.FLOAT16, ElementType.INT64
Weights = Mapping[str, tuple[ElementType, tuple[int, ...]]]


def node(op_type: str, inputs: str, output: str, **attributes: Any) -> Node:
    return Node(op_type, tuple(inputs.split()), tuple(output.split()), attributes, name=output)


def graph_of(nodes: Sequence[Node], weights: Weights, outputs: str, kind: ElementType = FP32) -> Graph:
    """A graph over x, with what shape inference would say of x alone."""
    initializers = {name: Initializer(name, t, shape, None) for name, (t, shape) in weights.items()}
    inputs = (TensorInfo("x", kind, (1, "S", 8)),)
    given_out = tuple(TensorInfo(name, ElementType.UNDEFINED, None) for name in outputs.split())
    graph = Graph("g", tuple(nodes), inputs, given_out, initializers, {"": 21})
    return replace(graph, types=propagate_types(graph), shapes={"x": (1, "S", 8)})


def cut_out(graph: Graph, names: Collection[str] | None = None) -> Program:
    """Cut with the Linears of these names outside; all of them by default."""
    return cut(graph, [li for li in find_linears(graph) if names is None or li.spec.name in names])


def ops(program: Program) -> list[tuple[list[str], list[str]]]:
    """For each level, the outputs of the island's nodes and the names of the Linears."""
    return [
        (
            [] if level.island is None else [n.outputs[0] for n in level.island.nodes],
            [linear.name for linear in level.linears],
        )
        for level in program.levels
    ]


def names(infos: Sequence[TensorInfo]) -> list[str]:
    return [info.name for info in infos]


def check_order(program: Program) -> None:
    """Everything an island or a Linear reads is there by then, and is given by the one that made it."""
    there = {*names(program.inputs), *program.constants}
    for level in program.levels:
        if level.island is not None:
            island = level.island
            assert there.issuperset(names(island.inputs))
            known = {*names(island.inputs), *(i.name for i in island.initializers)}
            for inner in island.nodes:
                assert known.issuperset(inner.reads), inner
                known.update(inner.outputs)
            assert known.issuperset(names(island.outputs))
            there.update(names(island.outputs))
        for attention in level.attentions:
            assert there.issuperset(attention.inputs)
        for linear in level.linears:
            assert linear.input in there
            assert program.element_type(linear.input) is program.element_type(linear.output) is FP32
        there.update(linear.output for linear in level.linears)
        there.update(attention.output for attention in level.attentions)
    appended = {name for node in program.graph.nodes if node.op_type == "hybrid.Attention" for name in node.outputs[1:]}
    assert there.issuperset({*names(program.outputs)} - appended)


def llama_layer(n: int) -> list[Node]:
    return [
        node("Mul", f"x{n} norm", f"n{n}"),
        *(node("MatMul", f"n{n} w", f"{part}{n}") for part in "qkv"),
        node("Sum", f"q{n} k{n} v{n}", f"a{n}"),
        node("MatMul", f"a{n} w", f"o{n}"),
        node("Add", f"x{n} o{n}", f"r{n}"),
        node("Mul", f"r{n} norm", f"m{n}"),
        *(node("MatMul", f"m{n} w", f"{part}{n}") for part in ("gate", "up")),
        node("Mul", f"gate{n} up{n}", f"s{n}"),
        node("MatMul", f"s{n} w", f"down{n}"),
        node("Add", f"r{n} down{n}", f"x{n + 1}"),
    ]


LAYERS: Weights = {"w": (FP32, (8, 8)), "norm": (FP32, (8,)), "head": (FP32, (8, 40))}


def two_layers() -> Graph:
    nodes = [node("Relu", "x", "x0"), *llama_layer(0), *llama_layer(1), node("MatMul", "x2 head", "logits")]
    return graph_of(nodes, LAYERS, "logits")


def test_a_llama_layer_is_four_levels() -> None:
    program = cut_out(two_layers())
    check_order(program)
    assert ops(program) == [
        (["x0", "n0"], ["q0", "k0", "v0"]),
        (["a0"], ["o0"]),
        (["r0", "m0"], ["gate0", "up0"]),
        (["s0"], ["down0"]),
        (["x1", "n1"], ["q1", "k1", "v1"]),
        (["a1"], ["o1"]),
        (["r1", "m1"], ["gate1", "up1"]),
        (["s1"], ["down1"]),
        (["x2"], ["logits"]),
    ]
    assert names(program.levels[2].island.inputs) == ["x0", "o0"]  # type: ignore[union-attr]
    assert (program.last_use["x0"], program.last_use["r0"], program.last_use["logits"]) == (2, 4, 9)
    assert not any(level.island.has_matmul for level in program.levels if level.island)


def test_linears_that_stay_keep_their_island_whole() -> None:
    program = cut_out(two_layers(), [])
    check_order(program)
    (level,) = program.levels
    assert level.island is not None
    assert (len(level.island.nodes), level.linears) == (28, ())
    assert level.island.has_matmul
    program = cut_out(two_layers(), ["down0"])
    check_order(program)
    assert [linears for _, linears in ops(program)] == [["down0"], []]
    assert names(program.levels[1].island.inputs) == ["r0", "down0"]  # type: ignore[union-attr]


def test_nodes_without_constants_of_their_own_get_copies() -> None:
    """`mask` is computed from initializers alone and read on both sides of the Linear: each side computes it."""
    nodes = [
        node("Neg", "c", "minus"),
        node("Exp", "minus", "mask"),
        node("Add", "x mask", "h"),
        node("MatMul", "h w", "y"),
        node("Add", "y mask", "z"),
    ]
    program = cut_out(graph_of(nodes, {"c": (FP32, (8,)), "w": (FP32, (8, 8))}, "z"))
    check_order(program)
    assert ops(program) == [(["minus", "mask", "h"], ["y"]), (["minus", "mask", "z"], [])]
    for level in program.levels:
        assert level.island is not None
        assert [i.name for i in level.island.initializers] == ["c"]
        assert "mask" not in {*names(level.island.inputs), *names(level.island.outputs)}


@pytest.mark.parametrize(
    ("shape", "kind", "shared"),
    [
        ((64, 64), FP32, True),  # 16 KiB
        ((64, 63), FP32, False),
        ((128, 64), FP16, True),
        ((64, 64), INT64, False),
    ],
)
def test_large_float_constants_of_several_islands_are_shared(
    shape: tuple[int, ...], kind: ElementType, shared: bool
) -> None:
    nodes = [node("Mix", "x t", "h"), node("MatMul", "h w", "y"), node("Mix", "y t", "z")]
    program = cut_out(graph_of(nodes, {"t": (kind, shape), "w": (FP32, (8, 8))}, "z"))
    check_order(program)
    assert list(program.constants) == (["t"] if shared else [])
    for level in program.levels:
        assert level.island is not None
        assert ("t" in names(level.island.inputs)) is shared
        assert [i.name for i in level.island.initializers] == ([] if shared else ["t"])


def test_a_large_constant_of_one_island_is_its_own() -> None:
    nodes = [node("Mix", "x t", "g"), node("Mix", "g t", "h"), node("MatMul", "h w", "y"), node("Neg", "y", "z")]
    program = cut_out(graph_of(nodes, {"t": (FP32, (100, 100)), "w": (FP32, (8, 8))}, "z"))
    assert program.constants == {}


def test_half_activations_are_cast_at_the_edges_once() -> None:
    nodes = [
        node("Neg", "x", "h"),
        *(node("MatMul", "h w", name) for name in "qk"),
        node("Add", "q k", "z"),
    ]
    program = cut_out(graph_of(nodes, {"w": (FP16, (8, 12))}, "z", FP16))
    check_order(program)
    first, second = program.levels
    assert first.island is not None
    assert second.island is not None
    assert [(n.op_type, n.inputs) for n in first.island.nodes] == [("Neg", ("x",)), ("Cast", ("h",))]
    assert first.island.nodes[1].attributes["to"] == FP32
    assert first.linears[0].input == first.linears[1].input == first.island.nodes[1].outputs[0]
    assert [n.op_type for n in second.island.nodes] == ["Cast", "Cast", "Add"]
    assert {n.attributes["to"] for n in second.island.nodes[:2]} == {FP16}
    assert [n.outputs[0] for n in second.island.nodes] == ["q", "k", "z"]  # the graph's own names stay half
    assert program.element_type("q") is FP16


@pytest.mark.parametrize("kind", [FP32, FP16])
def test_the_bias_of_a_gemm_is_added_behind_it(kind: ElementType) -> None:
    nodes = [node("Neg", "x", "h"), node("Gemm", "h w b", "y"), node("Exp", "y", "z")]
    program = cut_out(graph_of(nodes, {"w": (kind, (8, 12)), "b": (kind, (12,))}, "z", kind))
    check_order(program)
    island = program.levels[1].island
    assert island is not None
    cast = [] if kind is FP32 else ["Cast"]
    assert [n.op_type for n in island.nodes] == [*cast, "Add", "Exp"]
    assert island.nodes[-2].inputs[1] == "b"
    assert island.nodes[-2].outputs == ("y",)


def test_what_no_output_needs_is_dropped() -> None:
    nodes = [
        node("Neg", "x", "h"),
        node("MatMul", "h w", "unused"),
        node("Exp", "unused", "also"),
        node("MatMul", "h w", "y"),
    ]
    program = cut_out(graph_of(nodes, {"w": (FP32, (8, 8))}, "y"))
    assert ops(program) == [(["h"], ["y"])]


def test_a_linear_may_feed_a_linear_and_read_the_graphs_input() -> None:
    nodes = [node("MatMul", "x w", "h"), node("MatMul", "h v", "y")]
    program = cut_out(graph_of(nodes, {"w": (FP32, (8, 12)), "v": (FP32, (12, 8))}, "y"))
    check_order(program)
    assert ops(program) == [([], ["h"]), ([], ["y"])]
    assert (program.shape("h"), program.shape("y")) == ((1, "S", 12), (1, "S", 8))


def test_captured_tensors_cross_levels_too() -> None:
    """The body of an If reads `h` and the Linear's `y`: the node has to wait for both."""
    body = Graph("body", (node("Add", "h y", "sum"),), (), (TensorInfo("sum", FP32, None),), {}, {})
    branch = replace(node("If", "x", "z"), attributes={"then_branch": body, "else_branch": body})
    nodes = [node("Neg", "x", "h"), node("MatMul", "h w", "y"), branch]
    program = cut_out(graph_of(nodes, {"w": (FP32, (8, 8))}, "z"))
    check_order(program)
    assert names(program.levels[1].island.inputs) == ["x", "h", "y"]  # type: ignore[union-attr]


def test_a_crossing_tensor_of_no_known_type_is_named() -> None:
    nodes = [Node("Unheard", (), ("h",)), node("MatMul", "x w", "y"), node("Add", "h y", "z")]
    graph = graph_of(nodes, {"w": (FP32, (8, 8))}, "z")
    graph = replace(graph, types={name: kind for name, kind in graph.types.items() if name != "z"})
    with pytest.raises(UnsupportedModelError, match="type of tensor 'z'"):
        cut_out(graph)


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), size=st.integers(1, 25))
def test_random_graphs_are_cut_in_order_and_whole(seed: int, size: int) -> None:
    """Random DAGs of Adds, constants and Linears, some of them outside: every live node runs, in its level."""
    rng = np.random.default_rng(seed)
    tensors, nodes = ["x", "t"], []
    for number in range(size):
        read = rng.choice(tensors, 2)
        is_linear = rng.random() < 0.4
        nodes.append(node("MatMul" if is_linear else "Add", f"{read[0]} {'w' if is_linear else read[1]}", f"h{number}"))
        tensors.append(f"h{number}")
    graph = graph_of([*nodes, node("Add", f"x {tensors[-1]}", "z")], {"w": (FP32, (8, 8)), "t": (FP32, (64, 64))}, "z")
    outside = {linear.spec.name for linear in find_linears(graph) if rng.random() < 0.7}
    program = cut_out(graph, outside)
    check_order(program)
    ran = {name for made, run in ops(program) for name in (*made, *run)}
    needed = {"z"}
    for inner in reversed(graph.nodes):
        if inner.outputs[0] in needed:
            needed.update(inner.reads)
    assert ran == needed - {"x", "t", "w"}
    assert {name for _, run in ops(program) for name in run} == outside & needed
