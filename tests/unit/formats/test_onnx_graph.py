"""An .onnx file to a Graph and back: where weights lie, what types and shapes are known."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import TensorProto
from onnx.helper import make_graph, make_model, make_node, make_opsetid, make_tensor, make_tensor_value_info
from onnx.numpy_helper import from_array

from hybrid.errors import ModelFileError, UnsupportedModelError
from hybrid.formats.onnx_graph import common_folder, read_graph, serialize, with_types_and_shapes
from hybrid.graph.graph import ElementType, Graph, Initializer, Node, TensorInfo
from offload.storage.weight_file import FileRange, WeightFile


def write(
    folder: Path,
    nodes: Sequence[onnx.NodeProto],
    tensors: Sequence[TensorProto] = (),
    inputs: Sequence[onnx.ValueInfoProto] = (),
    name: str = "model.onnx",
) -> Path:
    """A model whose output is the last node's, of unknown shape."""
    outputs = [make_tensor_value_info(nodes[-1].output[0], TensorProto.FLOAT, None)]
    graph = make_graph(nodes, "main", inputs, outputs, list(tensors))
    opsets = [make_opsetid("", 21), make_opsetid("com.microsoft", 1)]
    (folder / name).write_bytes(make_model(graph, opset_imports=opsets).SerializeToString())
    return folder / name


def external(name: str, location: str, dims: Sequence[int], data_type: int = 1, **entries: object) -> TensorProto:
    proto = TensorProto(name=name, data_type=data_type, dims=dims, data_location=TensorProto.EXTERNAL)
    for key, value in {"location": location, **entries}.items():
        proto.external_data.add(key=key, value=str(value))
    return proto


def identity(name: str) -> onnx.NodeProto:
    return make_node("Identity", [name], [f"{name}/copy"])


X = make_tensor_value_info("x", TensorProto.FLOAT, [1, "S", 4])


def test_external_weights_lie_at_their_offsets(tmp_path: Path) -> None:
    a, b = np.arange(6, dtype=np.float32).reshape(2, 3), np.arange(4, dtype=np.float16)
    (tmp_path / "deep").mkdir()
    data = tmp_path / "deep" / "weights.bin"
    data.write_bytes(b"12345" + a.tobytes() + b.tobytes())
    tensors = [
        external("a", "deep/weights.bin", [2, 3], offset=5, length=24),
        external("b", "deep/weights.bin", [4], TensorProto.FLOAT16, offset=29),  # without a length: by its shape
    ]
    graph = read_graph(write(tmp_path, [identity("a"), identity("b")], tensors))
    assert graph.initializers["a"].source == FileRange(WeightFile.at(data), 5, 24)
    assert graph.initializers["b"].source == FileRange(WeightFile.at(data), 29, 8)
    for name, expected in (("a", a), ("b", b)):
        found = graph.initializers[name].array()
        assert not found.flags.writeable  # mapped
        assert (found.dtype, found.tolist()) == (expected.dtype, expected.tolist())


def test_large_inline_weights_are_mapped_and_small_ones_read(tmp_path: Path) -> None:
    large, small = np.arange(400, dtype=np.float32).reshape(20, 20), np.array([[2, 7]], np.int64)
    tensors = [from_array(large, "large"), from_array(small, "small")]
    graph = read_graph(write(tmp_path, [identity("large"), identity("small")], tensors))
    assert isinstance(graph.initializers["large"].source, FileRange)
    assert np.array_equal(graph.initializers["large"].array(), large)
    assert isinstance(graph.initializers["small"].source, np.ndarray)
    assert np.array_equal(graph.initializers["small"].array(), small)


@pytest.mark.parametrize("count", [3, 3000])  # in the message, and left in the file
@pytest.mark.parametrize(
    ("element_type", "dtype"),
    [(ElementType.FLOAT16, "float16"), (ElementType.BFLOAT16, "uint16"), (ElementType.INT8, "int8")],
)
def test_element_types_keep_their_bits(element_type: ElementType, dtype: str, count: int, tmp_path: Path) -> None:
    bits = (np.arange(count) * 37 % 251).astype(dtype)
    proto = TensorProto(name="w", data_type=int(element_type), dims=[count, 1], raw_data=bits.tobytes())
    weight = read_graph(write(tmp_path, [identity("w")], [proto])).initializers["w"]
    assert (weight.element_type, weight.shape) == (element_type, (count, 1))
    assert weight.nbytes == bits.nbytes
    assert np.array_equal(weight.array(), bits[:, None])


@pytest.mark.parametrize("element_type", [ElementType.INT4, ElementType.UINT4])
@pytest.mark.parametrize("count", [5, 3001])
def test_four_bit_weights_stay_packed(element_type: ElementType, count: int, tmp_path: Path) -> None:
    packed = np.arange((count + 1) // 2, dtype=np.uint8)
    proto = TensorProto(name="w", data_type=int(element_type), dims=[count], raw_data=packed.tobytes())
    weight = read_graph(write(tmp_path, [identity("w")], [proto])).initializers["w"]
    assert (weight.nbytes, weight.shape) == (len(packed), (count,))
    assert np.array_equal(weight.array(), packed)


def test_bfloat16_in_the_int32_field_is_read_as_bits(tmp_path: Path) -> None:
    proto = TensorProto(name="w", data_type=TensorProto.BFLOAT16, dims=[2], int32_data=[0x3F80, 0xC000])
    weight = read_graph(write(tmp_path, [identity("w")], [proto])).initializers["w"]
    assert weight.array().tolist() == [0x3F80, 0xC000]
    assert weight.array().dtype == np.uint16


CONSTANTS: list[tuple[dict[str, Any], npt.NDArray[Any]]] = [
    ({"value": from_array(np.array([[1.5, 2]], np.float32))}, np.array([[1.5, 2]], np.float32)),
    ({"value_float": 0.5}, np.array(0.5, np.float32)),
    ({"value_floats": [0.5, 1]}, np.array([0.5, 1], np.float32)),
    ({"value_int": 3}, np.array(3, np.int64)),
    ({"value_ints": [3, 4]}, np.array([3, 4], np.int64)),
]


@pytest.mark.parametrize(("attributes", "expected"), CONSTANTS)
def test_constant_nodes_become_initializers(
    attributes: dict[str, Any], expected: npt.NDArray[Any], tmp_path: Path
) -> None:
    graph = read_graph(write(tmp_path, [make_node("Constant", [], ["c"], **attributes), identity("c")]))
    assert [node.op_type for node in graph.nodes] == ["Identity"]
    found = graph.initializers["c"].array()
    assert (found.dtype, found.shape, found.tolist()) == (expected.dtype, expected.shape, expected.tolist())


def test_a_constant_node_can_hold_external_data(tmp_path: Path) -> None:
    (tmp_path / "c.bin").write_bytes(bytes(4) + np.array([8, 9], np.float32).tobytes())
    node = make_node("Constant", [], ["c"], value=external("", "c.bin", [2], offset=4, length=8))
    graph = read_graph(write(tmp_path, [node, identity("c")]))
    assert graph.initializers["c"].array().tolist() == [8.0, 9.0]


def test_a_constant_of_strings_is_refused_by_name(tmp_path: Path) -> None:
    path = write(tmp_path, [make_node("Constant", [], ["words"], value_string="a"), identity("words")])
    with pytest.raises(UnsupportedModelError, match="constant 'words'"):
        read_graph(path)


def test_initializers_that_are_also_inputs_are_not_fed(tmp_path: Path) -> None:
    w = make_tensor_value_info("w", TensorProto.FLOAT, [4])
    node = make_node("Add", ["x", "w"], ["y"])
    graph = read_graph(write(tmp_path, [node], [from_array(np.ones(4, np.float32), "w")], [X, w]))
    assert graph.inputs == (TensorInfo("x", ElementType.FLOAT, (1, "S", 4)),)


def test_bodies_name_what_they_capture(tmp_path: Path) -> None:
    """Two deep: the inner body reads `far` of the graph, `near` of the outer body, and its own `mine`."""
    inner = make_graph(
        [make_node("Add", ["far", "near"], ["mine"]), make_node("Neg", ["mine"], ["inner"])],
        "inner",
        [],
        [make_tensor_value_info("inner", TensorProto.FLOAT, None)],
    )
    nodes = [
        make_node("Neg", ["x"], ["near"]),
        make_node("If", ["which"], ["out"], then_branch=inner, else_branch=inner),
    ]
    outer = make_graph(nodes, "outer", [], [make_tensor_value_info("out", TensorProto.FLOAT, None)])
    condition, which = (make_tensor_value_info(name, TensorProto.BOOL, []) for name in ("condition", "which"))
    far = make_tensor_value_info("far", TensorProto.FLOAT, [4])
    node = make_node("If", ["condition"], ["y"], then_branch=outer, else_branch=outer)
    path = write(tmp_path, [identity("far"), node], (), [X, condition, which, far])
    (found,) = (node for node in read_graph(path).nodes if node.op_type == "If")
    assert set(found.reads) == {"condition", "far", "x", "which"}


def test_a_graph_survives_being_written_and_read(tmp_path: Path) -> None:
    data = tmp_path / "weights.bin"
    data.write_bytes(np.arange(20, dtype=np.float32).tobytes())
    nodes = [
        make_node("MatMul", ["x", "w"], ["h"], name="linear"),
        make_node("FusedMatMul", ["h", "v"], ["i"], domain="com.microsoft", alpha=0.5, transB=1),
        make_node("Clip", ["i", "", "top"], ["j"]),
        make_node("Odd", ["j"], ["y"], axes=[0, 1], word="w", scales=[0.5], domain="com.microsoft"),
    ]
    odd = nodes[-1].attribute.add(name="empty", type=onnx.AttributeProto.INTS)
    v = external("v", "weights.bin", [1, 4], offset=0)
    tensors = [
        from_array(np.eye(4, dtype=np.float32), "w"),
        v,
        make_tensor("top", 1, [], [6.0]),
    ]
    graph = read_graph(write(tmp_path, nodes, tensors, [X]))
    parts = graph.nodes, graph.inputs, graph.outputs, graph.initializers.values(), graph.opsets
    message = serialize("again", *parts, tmp_path)
    assert len(message) < 1200
    (tmp_path / "again.onnx").write_bytes(message)
    again = read_graph(tmp_path / "again.onnx")
    assert (again.inputs, again.outputs, again.opsets) == (graph.inputs, graph.outputs, graph.opsets)
    for before, after in zip(graph.nodes, again.nodes, strict=True):
        assert (after.op_type, after.domain, after.name) == (before.op_type, before.domain, before.name)
        assert (after.inputs, after.outputs) == (before.inputs, before.outputs)
        assert dict(after.attributes) == dict(before.attributes)
    assert again.nodes[-1].attributes["empty"] == odd  # an empty list keeps its type
    assert again.initializers["v"].source == FileRange(WeightFile.at(data), 0, 16)
    for name in ("w", "top"):
        assert np.array_equal(again.initializers[name].array(), graph.initializers[name].array())


def test_the_common_folder_is_the_deepest_that_holds_all_weights(tmp_path: Path) -> None:
    places = [tmp_path / "a" / "one.bin", tmp_path / "b" / "c" / "two.bin"]
    weights = []
    for place in places:
        place.parent.mkdir(parents=True)
        place.write_bytes(b"1")
        weights.append(Initializer(place.name, ElementType.INT8, (1,), FileRange(WeightFile.at(place), 0, 1)))
    assert common_folder(weights) == tmp_path
    assert common_folder(weights[1:]) == tmp_path / "b" / "c"


def test_types_and_shapes_follow_from_the_inputs(tmp_path: Path) -> None:
    """w is large enough to be hidden from shape inference, `to` small enough to be read."""
    nodes = [
        make_node("MatMul", ["x", "w"], ["h"]),
        make_node("Reshape", ["h", "to"], ["heads"]),
        make_node("Cast", ["heads"], ["half"], to=TensorProto.FLOAT16),
        make_node("Shape", ["x"], ["shape"]),
        make_node("Unheard", ["half"], ["y"], domain="com.microsoft"),
    ]
    to = from_array(np.array([1, -1, 10, 64]), "to")
    graph = read_graph(write(tmp_path, nodes, [from_array(np.ones((4, 640), np.float32), "w"), to], [X]))
    known = with_types_and_shapes(graph, {"x": (1, "S", 4)})
    assert known.shapes["h"] == (1, "S", 640)
    assert known.shapes["heads"][2:] == (10, 64)
    assert known.shapes["half"] == known.shapes["heads"]
    assert "y" not in known.shapes
    names = ("x", "h", "half", "shape", "y")
    expected = [ElementType[t] for t in ("FLOAT", "FLOAT", "FLOAT16", "INT64", "FLOAT")]
    assert [known.types[name] for name in names] == expected
    five = with_types_and_shapes(graph, {"x": (1, 5, 4)})
    assert (five.shapes["h"], five.shapes["heads"]) == ((1, 5, 640), (1, 5, 10, 64))
    assert five.inputs[0].shape == (1, 5, 4)


@pytest.mark.parametrize(
    ("dims", "data_type", "nbytes"),
    [
        ([3], TensorProto.FLOAT, 8),
        ([5], TensorProto.INT4, 2),
        ([500], TensorProto.FLOAT, 1996),
        ([2**32, 2**32], TensorProto.FLOAT, 0),  # 2**64 elements, which is 0 in 64 bits
    ],
)
def test_stored_bytes_must_fit_the_shape(dims: list[int], data_type: int, nbytes: int, tmp_path: Path) -> None:
    proto = TensorProto(name="w", data_type=data_type, dims=dims, raw_data=bytes(nbytes))
    with pytest.raises(ModelFileError, match="tensor 'w'"):
        read_graph(write(tmp_path, [identity("w")], [proto]))


def test_types_of_com_microsoft_operators() -> None:
    """onnx knows nothing of them; what they give follows their first input or their scales."""
    weights = [
        Initializer("w8", ElementType.UINT8, (8, 1, 8), None),
        Initializer("s", ElementType.FLOAT16, (8, 1), None),
    ]
    nodes = (
        Node("GatherBlockQuantized", ("w8", "ids", "s"), ("e",), {}, "com.microsoft"),
        Node("MatMulNBits", ("e", "w8", "s"), ("h",), {"K": 16, "N": 8}, "com.microsoft"),
        Node("DynamicQuantizeLinear", ("h",), ("q", "qs", "qz")),
        Node("MatMulInteger", ("q", "w8", "qz"), ("i",)),
    )
    inputs = (TensorInfo("ids", ElementType.INT64, (1, "S")),)
    graph = Graph("g", nodes, inputs, (), {w.name: w for w in weights}, {"": 21, "com.microsoft": 1})
    types = with_types_and_shapes(replace(graph), {}).types
    found = {name: types[name].name for name in ("e", "h", "q", "qs", "qz", "i")}
    assert found == {
        "e": "FLOAT16", "h": "FLOAT16", "q": "UINT8", "qs": "FLOAT", "qz": "UINT8", "i": "INT32"
    }  # fmt: skip
