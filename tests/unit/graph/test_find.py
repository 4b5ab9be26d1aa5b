"""Which nodes are Linears, and what is known of each. Sizes are worked out by hand."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from hybrid.graph.element_types import propagate_types
from hybrid.graph.find import Linear, find_linears, stored_weight
from hybrid.graph.graph import ElementType, Graph, Initializer, Node, TensorInfo
from offload.spec.linear import BlockFormat, Dense, Layout, WeightFormat

FP32, FP16, BF16 = ElementType.FLOAT, ElementType.FLOAT16, ElementType.BFLOAT16
INT8, UINT8, INT4 = ElementType.INT8, ElementType.UINT8, ElementType.INT4
MS = "com.microsoft"


def node(op_type: str, inputs: str, output: str, name: str = "", domain: str = "", **attributes: Any) -> Node:
    return Node(op_type, tuple(inputs.split()), tuple(output.split()), attributes, domain, name)


def graph_of(nodes: Sequence[Node], weights: Mapping[str, tuple[ElementType, tuple[int, ...]]]) -> Graph:
    """A graph over float inputs x and y; weights without elements."""
    inputs = tuple(TensorInfo(name, FP32, (1, "S", 8)) for name in ("x", "y"))
    initializers = {name: Initializer(name, kind, shape, None) for name, (kind, shape) in weights.items()}
    graph = Graph("g", tuple(nodes), inputs, (), initializers, {"": 21, MS: 1})
    return Graph("g", tuple(nodes), inputs, (), initializers, graph.opsets, propagate_types(graph))


def only(nodes: Sequence[Node], **weights: tuple[ElementType, tuple[int, ...]]) -> Linear:
    (linear,) = find_linears(graph_of(nodes, weights))
    assert (linear.node, linear.output) == (nodes[-1], nodes[-1].outputs[0])
    return linear


def shape_of(linear: Linear) -> tuple[int, int, str, str, int]:
    spec = linear.spec
    return spec.in_features, spec.out_features, spec.format, spec.layout, spec.weight_bytes


def test_a_matmul_reads_its_weight_as_kn() -> None:
    linear = only([node("MatMul", "x w", "h", "/layers.3/q_proj/MatMul")], w=(FP32, (8, 12)))
    assert shape_of(linear) == (8, 12, "fp32", "KN", 384)
    assert (linear.input, linear.weights, linear.bias) == ("x", ("w",), "")
    assert (linear.spec.name, linear.spec.host_only_reason) == ("/layers.3/q_proj/MatMul", "")


def test_a_transposed_weight_is_nk() -> None:
    turn = node("Transpose", "w", "wt", perm=[1, 0])
    assert shape_of(only([turn, node("MatMul", "x wt", "h")], w=(FP16, (12, 8)))) == (8, 12, "fp16", "NK", 192)
    bare = node("Transpose", "w", "wt")  # without perm the dimensions are reversed
    assert only([bare, node("MatMul", "x wt", "h")], w=(FP16, (12, 8))).spec.layout is Layout.NK
    kept = node("Transpose", "w", "wt", perm=[0, 1])
    assert find_linears(graph_of([kept, node("MatMul", "x wt", "h")], {"w": (FP16, (8, 12))})) == ()


@pytest.mark.parametrize(
    ("trans_b", "stored", "layout"), [(None, (8, 12), "KN"), (0, (8, 12), "KN"), (1, (12, 8), "NK")]
)
@pytest.mark.parametrize("bias", ["", "b"])
def test_a_gemm(trans_b: int | None, stored: tuple[int, int], layout: str, bias: str) -> None:
    attributes: dict[str, Any] = {} if trans_b is None else {"transB": trans_b}
    gemm = node("Gemm", f"x w {bias}", "h", alpha=1.0, beta=1.0, **attributes)
    linear = only([gemm], w=(FP32, stored), b=(FP32, (12,)))
    assert shape_of(linear) == (8, 12, "fp32", layout, 384)
    assert (linear.bias, linear.spec.host_only_reason) == (bias, "")


@pytest.mark.parametrize("attributes", [{"alpha": 0.5}, {"beta": 2.0}, {"transA": 1}])
def test_a_gemm_that_does_more_stays_on_the_cpu(attributes: dict[str, Any]) -> None:
    linear = only([node("Gemm", "x w", "h", **attributes)], w=(FP32, (8, 12)))
    assert "Gemm with alpha, beta or transA" in linear.spec.host_only_reason


def test_a_gemm_of_a_transposed_weight_turns_it_back() -> None:
    nodes = [node("Transpose", "w", "wt", perm=[1, 0]), node("Gemm", "x wt", "h", transB=1)]
    assert shape_of(only(nodes, w=(FP32, (8, 12)))) == (8, 12, "fp32", "KN", 384)


def test_a_fused_matmul_of_a_half_weight() -> None:
    linear = only([node("FusedMatMul", "x w", "h", "", MS, transB=1)], w=(BF16, (12, 8)))
    assert shape_of(linear) == (8, 12, "bf16", "NK", 192)
    assert linear.spec.host_only_reason == ""


@pytest.mark.parametrize("attributes", [{"alpha": 0.5}, {"transA": 1}, {"transBatchB": 1}])
def test_a_fused_matmul_that_does_more_stays_on_the_cpu(attributes: dict[str, Any]) -> None:
    linear = only([node("FusedMatMul", "x w", "h", "", MS, **attributes)], w=(FP32, (8, 12)))
    assert "FusedMatMul" in linear.spec.host_only_reason


def test_half_weights_behind_casts_keep_their_format() -> None:
    """Upcast and turned, in either order; a cast down to half is no exact product of the stored weight."""
    up, turn = node("Cast", "w", "u", to=int(FP32)), node("Transpose", "u", "t", perm=[1, 0])
    weights = {"w": (FP16, (12, 8))}
    assert shape_of(only([up, turn, node("MatMul", "x t", "h")], **weights)) == (8, 12, "fp16", "NK", 192)
    turn, up = node("Transpose", "w", "t", perm=[1, 0]), node("Cast", "t", "u", to=int(FP32))
    assert shape_of(only([turn, up, node("MatMul", "x u", "h")], **weights)) == (8, 12, "fp16", "NK", 192)
    down = node("Cast", "w", "d", to=int(FP16))
    assert find_linears(graph_of([down, node("MatMul", "x d", "h")], {"w": (FP32, (8, 12))})) == ()


@pytest.mark.parametrize(("bits", "weight_format"), [(4, "int4"), (8, "int8")])
def test_matmul_nbits_counts_scales_and_zeros(bits: int, weight_format: str) -> None:
    """K 64 and N 12 in blocks of 32: 12*2 blocks of 32*bits/8 bytes, 24 fp32 scales, packed zero points."""
    weights = {"w": (UINT8, (12, 2, 4 * bits)), "s": (FP32, (24,)), "z": (UINT8, (12, bits // 4))}
    linear = only([node("MatMulNBits", "x w s z", "h", "q", MS, K=64, N=12, bits=bits, block_size=32)], **weights)
    nbytes = 12 * 2 * 4 * bits + 24 * 4 + 12 * bits // 4
    assert shape_of(linear) == (64, 12, weight_format, "NK", nbytes)
    assert linear.spec.host_only_reason == ""


NBITS = {"w": (UINT8, (12, 2, 16)), "s": (FP32, (24,)), "z": (UINT8, (12, 1))}


def nbits(inputs: str, **attributes: Any) -> Node:
    """A MatMulNBits; "-" is an input that is not given."""
    names = tuple("" if name == "-" else name for name in inputs.split())
    return Node("MatMulNBits", names, ("h",), {"K": 64, "N": 12, "bits": 4, "block_size": 32, **attributes}, MS, "q")


def test_blocks_that_our_kernels_multiply() -> None:
    linear = only([nbits("x w s z", accuracy_level=4)], **NBITS)
    assert linear.weights == ("w", "s", "z")
    linear = only([nbits("x w s - - b")], **NBITS, b=(FP32, (12,)))
    assert (linear.weights, linear.bias) == (("w", "s"), "b")
    halves = NBITS | {"s": (FP16, (12, 2))}
    assert only([nbits("x w s")], **halves).weights == ("w", "s")


@pytest.mark.parametrize(
    ("node", "changes"),
    [
        (nbits("x w s - g"), {"g": (ElementType.INT32, (64,))}),  # columns of W in another order
        (nbits("x w s z"), {"z": (FP32, (24,))}),  # zero points that are floats
        (nbits("x w y"), {}),  # scales that are computed
        (nbits("x w s", bits=2), {}),
        (nbits("x w s", block_size=8), {}),
        (nbits("x w s", weight_prepacked=1), {}),
        (nbits("x w s", K=128), {}),  # sizes that contradict each other
    ],
)
def test_blocks_that_stay_in_onnxruntime(node: Node, changes: dict[str, Any]) -> None:
    assert only([node], **NBITS | changes).spec.blocks is None


@pytest.mark.parametrize("shape", [(8, 12), (12, 8)])
def test_a_linear_gives_its_matrix_where_it_lies(shape: tuple[int, int]) -> None:
    graph = graph_of([node("Gemm", "x w", "h", transB=int(shape == (12, 8)))], {"w": (BF16, shape)})
    values = np.arange(96, dtype=np.uint16).reshape(shape)
    weight = replace(graph.initializers["w"], source=values)
    (linear,) = find_linears(graph)
    stored = stored_weight(replace(graph, initializers={"w": weight}), linear)
    assert stored.storage == Dense(WeightFormat.BF16, Layout.KN if shape == (8, 12) else Layout.NK)
    assert (stored.in_features, stored.out_features) == (8, 12)
    assert np.shares_memory(stored.arrays[0].array(), values)


def test_a_linear_gives_its_blocks_with_a_row_for_each_column() -> None:
    """Exporters flatten scales; K 64 in blocks of 32, 4 bits."""
    arrays = {
        "w": np.arange(384, dtype=np.uint8).reshape(12, 2, 16),
        "s": np.arange(24, dtype=np.float32),
        "z": np.arange(12, dtype=np.uint8),
    }
    graph = graph_of([nbits("x w s z")], {"w": (UINT8, (12, 2, 16)), "s": (FP32, (24,)), "z": (UINT8, (12,))})
    (linear,) = find_linears(graph)
    initializers = {name: replace(graph.initializers[name], source=array) for name, array in arrays.items()}
    stored = stored_weight(replace(graph, initializers=initializers), linear)
    assert stored.storage == BlockFormat(4, 32, WeightFormat.FP32, zeros=True)
    assert [array.shape for array in stored.arrays] == [(12, 2, 16), (12, 2), (12, 1)]
    for array, expected in zip(stored.arrays, arrays.values(), strict=True):
        np.testing.assert_array_equal(array.array().reshape(-1), expected.reshape(-1))


def test_weights_that_are_nowhere_or_for_onnxruntime_only_are_not_given() -> None:
    graph = graph_of([node("MatMul", "x w", "h")], {"w": (FP32, (8, 12))})
    with pytest.raises(ValueError, match="w: this graph was made from a config alone"):
        stored_weight(graph, find_linears(graph)[0])
    graph = graph_of([nbits("x w s", weight_prepacked=1)], NBITS)
    with pytest.raises(ValueError, match="int4 are stored in blocks"):
        stored_weight(graph, find_linears(graph)[0])


def test_blocks_of_different_sizes_are_different_groups() -> None:
    weights = {"w": (UINT8, (12, 2, 16)), "s": (FP32, (24,)), "v": (UINT8, (12, 1, 32)), "t": (FP32, (12,))}
    nodes = [nbits("x w s"), replace(nbits("x v t", block_size=64), outputs=("i",), name="k")]
    one, other = find_linears(graph_of(nodes, weights))
    assert one.spec.group != other.spec.group


def test_dequantised_weights_count_their_scales() -> None:
    nodes = [node("DequantizeLinear", "w s z", "d", axis=1), node("MatMul", "x d", "h")]
    linear = only(nodes, w=(INT8, (8, 12)), s=(FP32, (12,)), z=(INT8, (12,)))
    assert shape_of(linear) == (8, 12, "int8", "KN", 96 + 48 + 12)
    assert "int8 with DequantizeLinear" in linear.spec.host_only_reason
    nodes = [node("DequantizeLinear", "w s", "d"), node("Transpose", "d", "t"), node("MatMul", "x t", "h")]
    assert shape_of(only(nodes, w=(INT4, (12, 8)), s=(FP32, ()))) == (8, 12, "int4", "NK", 48 + 4)


def test_dynamically_quantised_matmuls_stay_on_the_cpu() -> None:
    nodes = [
        node("DynamicQuantizeLinear", "x", "q qs qz"),
        node("MatMulInteger", "q w qz wz", "h"),
    ]
    linear = only(nodes, w=(UINT8, (8, 12)), wz=(UINT8, ()))
    assert shape_of(linear) == (8, 12, "int8", "KN", 96)
    assert "MatMulInteger (dynamically quantised)" in linear.spec.host_only_reason


def test_a_tied_head_is_a_linear_and_its_embedding_is_not() -> None:
    nodes = [
        node("Gather", "table ids", "h", "embed"),
        node("Transpose", "table", "turned", perm=[1, 0]),
        node("MatMul", "x turned", "logits", "/lm_head/MatMul"),
    ]
    linear = only(nodes, table=(FP32, (40, 8)))
    assert (linear.weights, linear.spec.kind, linear.spec.layer) == (("table",), "lm_head", "")
    assert shape_of(linear) == (8, 40, "fp32", "NK", 1280)


@pytest.mark.parametrize(
    "nodes",
    [
        [node("MatMul", "w x", "h")],  # the weight on the left
        [node("MatMul", "x y", "h")],  # two activations
        [node("MatMul", "v w", "h")],  # two constants
        [node("Relu", "v", "r"), node("MatMul", "r w", "h")],  # also when computed
        [node("MatMul", "x cube", "h")],  # three dimensions
        [node("MatMul", "x none", "h")],  # no elements
        [node("MatMul", "x ints", "h")],  # no weight format
        [node("Relu", "w", "r"), node("MatMul", "x r", "h")],  # computed from a weight
        [node("MatMul", "x w", "h", domain="own")],  # somebody else's operator of that name
        [node("MatMulNBits", "x y s", "h", domain=MS, K=8, N=8)],
        [node("Gemm", "y x w", "h")],  # a constant addend
    ],
)
def test_what_is_not_a_linear(nodes: list[Node]) -> None:
    weights = {"w": (FP32, (8, 8)), "v": (FP32, (8, 8)), "cube": (FP32, (2, 8, 8)), "none": (FP32, (8, 0))}
    weights |= {"ints": (ElementType.INT64, (8, 8)), "s": (FP32, (8,))}
    assert find_linears(graph_of(nodes, weights)) == ()


def _layer(number: int) -> list[Node]:
    prefix, n = f"/model/layers.{number}", number
    return [
        node("MatMul", f"x{n} q", f"q{n}", f"{prefix}/attn/q_proj/MatMul"),
        node("MatMul", f"x{n} k", f"k{n}", f"{prefix}/attn/k_proj/MatMul"),
        node("MatMul", f"x{n} v", f"v{n}", f"{prefix}/attn/v_proj/MatMul"),
        node("Softmax", f"q{n}", f"a{n}"),
        node("MatMul", f"a{n} o", f"x{n + 1}", f"{prefix}/attn/o_proj/MatMul"),
    ]


def test_kinds_layers_and_groups_of_a_stack() -> None:
    nodes = [node("Relu", "x", "x0"), *_layer(0), *_layer(1), node("MatMul", "x2 head", "l", "/lm_head/MatMul")]
    weights = dict.fromkeys("qko", (FP32, (8, 8))) | {"v": (FP16, (8, 8)), "head": (FP32, (8, 40))}
    linears = find_linears(graph_of(nodes, weights))
    specs = [linear.spec for linear in linears]
    assert [(spec.kind, spec.layer) for spec in specs] == [
        *((kind, layer) for layer in "01" for kind in ("q_proj", "k_proj", "v_proj", "o_proj")),
        ("lm_head", ""),
    ]
    q0, k0, v0, o0, q1 = (spec.group for spec in specs[:5])
    assert q0 == k0
    assert len({q0, v0, o0, q1}) == 4  # v is stored in another format, so it cannot share a matrix
    assert len({spec.group for spec in specs}) == 7


def test_what_a_builder_says_goes_before_names() -> None:
    nodes = [
        replace(node("MatMul", "x a", "h0", "blocks.7.up4"), kind="up", layer=0),
        replace(node("MatMul", "h0 a", "h1", "MatMul_233"), kind="up", layer=1),
        replace(node("MatMul", "h1 head", "l", "head2"), kind="head"),
    ]
    specs = [linear.spec for linear in find_linears(graph_of(nodes, {"a": (FP32, (8, 8)), "head": (FP32, (8, 40))}))]
    assert [(spec.kind, spec.layer) for spec in specs] == [("up", "0"), ("up", "1"), ("head", "")]


def test_equal_and_absent_names_become_unique() -> None:
    nodes = [node("MatMul", "x w", output, name) for output, name in [("a", "m"), ("b", "m"), ("c", ""), ("d", "m")]]
    names = [linear.spec.name for linear in find_linears(graph_of(nodes, {"w": (FP32, (8, 8))}))]
    assert names == ["m", "m#2", "c", "m#3"]
    nodes.insert(0, node("MatMul", "x w", "e", "m#2"))
    names = [linear.spec.name for linear in find_linears(graph_of(nodes, {"w": (FP32, (8, 8))}))]
    assert len(set(names)) == 5


def test_one_kind_of_two_shapes_becomes_two_kinds() -> None:
    """Layers of one kind are placed alike, so a kind must have one shape."""
    nodes = [node("MatMul", f"x w{n}", f"h{n}", f"/layers.{n}/q_proj/MatMul") for n in range(2)]
    linears = find_linears(graph_of(nodes, {"w0": (FP32, (8, 8)), "w1": (FP32, (8, 16))}))
    assert [linear.spec.kind for linear in linears] == ["q_proj 8x8", "q_proj 8x16"]


def test_formats_that_are_floats_can_leave_the_cpu() -> None:
    for element_type, weight_format in ((FP32, "fp32"), (FP16, "fp16"), (BF16, "bf16")):
        linear = only([node("MatMul", "x w", "h")], w=(element_type, (8, 12)))
        assert linear.spec.format is WeightFormat(weight_format)
        assert linear.spec.host_only_reason == ""
        assert linear.spec.weight_bytes == 96 * np.dtype(linear.spec.format.storage_dtype).itemsize
