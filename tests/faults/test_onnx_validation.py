"""Graphs that cannot be: refused in one line before anything reads them; nodes out of order are put in order."""

from collections.abc import Callable, Sequence
from pathlib import Path

import onnx
import pytest
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto
from onnx.helper import make_attribute, make_graph, make_model, make_node, make_opsetid, make_tensor_value_info

from hybrid.errors import ModelFileError, UnsupportedModelError
from hybrid.formats.onnx_graph import external_files, read_graph
from tests import messages

FLOAT = TensorProto.FLOAT


def plain_graph(nodes: Sequence[NodeProto]) -> GraphProto:
    x, y = (make_tensor_value_info(name, FLOAT, [2, 2]) for name in ("x", "y"))
    return make_graph(nodes, "main", [x], [y])


def attention(**attributes: object) -> NodeProto:
    usual: dict[str, object] = {"num_heads": 4, "kv_num_heads": 2}
    chosen = {name: value for name, value in (usual | attributes).items() if value is not None}
    inputs = ["x", "x", "x", "x", "x", "x", "x"]
    return make_node("GroupQueryAttention", inputs, ["y", "k", "v"], domain="com.microsoft", **chosen)


def blocks(inputs: Sequence[str] = ("x", "x", "x"), **attributes: object) -> NodeProto:
    usual: dict[str, object] = {"K": 32, "N": 32, "bits": 4, "block_size": 32}
    chosen = {name: value for name, value in (usual | attributes).items() if value is not None}
    return make_node("MatMulNBits", inputs, ["y"], domain="com.microsoft", **chosen)


def with_attributes(node: NodeProto, *attributes: AttributeProto) -> NodeProto:
    node.attribute.extend(attributes)
    return node


def body(depth: int) -> GraphProto:
    """An If in an If in an If, `depth` times."""
    inner = make_node("Identity", ["x"], ["b"]) if depth == 0 else branching(body(depth - 1), "b")
    return make_graph([inner], "body", [], [make_tensor_value_info("b", FLOAT, [2, 2])])


def branching(branch: GraphProto, output: str = "y") -> NodeProto:
    return make_node("If", ["x"], [output], then_branch=branch, else_branch=branch)


def write(nodes: Sequence[NodeProto], folder: Path, change: Callable[[ModelProto], object] | None = None) -> Path:
    model = make_model(plain_graph(nodes), opset_imports=[make_opsetid("", 18), make_opsetid("com.microsoft", 1)])
    if change is not None:
        change(model)
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def refused(path: Path, kind: type[Exception] = ModelFileError) -> str:
    return messages.one_line(kind, lambda: read_graph(path), str(path))  # type: ignore[arg-type]


REFUSED: dict[str, list[NodeProto]] = {
    "a node that reads its own result": [make_node("Identity", ["y"], ["y"])],
    "a circle": [make_node("Add", ["x", "b"], ["a"]), make_node("Neg", ["a"], ["b"]), make_node("Neg", ["b"], ["y"])],
    "a circle through a body": [
        branching(make_graph([make_node("Neg", ["y"], ["b"])], "body", [], body(0).output)),
    ],
    "a name that nothing gives": [make_node("Neg", ["nowhere"], ["y"])],
    "a name in a body that nothing gives": [
        branching(make_graph([make_node("Neg", ["nowhere"], ["b"])], "body", [], body(0).output))
    ],
    "an output that nothing gives": [make_node("Neg", ["x"], ["z"])],
    "two nodes that make one tensor": [make_node("Neg", ["x"], ["y"]), make_node("Abs", ["x"], ["y"])],
    "a node that makes an input": [make_node("Neg", ["x"], ["y"]), make_node("Abs", ["x"], ["x"])],
    "a node that makes nothing": [make_node("Neg", ["x"], ["y"]), make_node("Neg", ["x"], [])],
    "bodies without end": [branching(body(12))],
    "a branch that gives too little": [make_node("If", ["x"], ["y", "z"], then_branch=body(0), else_branch=body(0))],
    "too few inputs": [make_node("MatMul", ["x"], ["y"])],
    "too many inputs": [make_node("Neg", ["x", "x"], ["y"])],
    "an input left out": [make_node("MatMul", ["", "x"], ["y"])],
    "an attribute that is missing": [make_node("Cast", ["x"], ["y"])],
    "an attribute of another type": [make_node("Cast", ["x"], ["y"], to=[1])],
    "an attribute of no type": [with_attributes(make_node("Neg", ["x"], ["y"]), AttributeProto(name="a"))],
    "an attribute twice": [
        with_attributes(make_node("Cast", ["x"], ["y"]), *(make_attribute("to", value) for value in (1, 10)))
    ],
    "an element type that there is not": [make_node("Cast", ["x"], ["y"], to=99)],
    "a standard operator in another domain": [make_node("MatMul", ["x"], ["y"], domain="com.microsoft")],
    "a cast of nothing in another domain": [make_node("Cast", ["x"], ["y"], domain="own")],
    "a constant without value": [make_node("Constant", [], ["y"])],
    "attention without heads": [attention(num_heads=None)],
    "attention of no heads": [attention(num_heads=0)],
    "attention of fewer than no heads": [attention(kv_num_heads=-2)],
    "attention of heads that do not go round": [attention(num_heads=3)],
    "attention of fractions of heads": [attention(num_heads=4.0)],
    "attention with a scale that is text": [attention(scale="much")],
    "heads that are text": [make_node("Own", ["x"], ["y"], domain="own", num_heads="many")],
    "blocks without rows": [blocks(K=None)],
    "blocks without columns": [blocks(N=None)],
    "blocks of no size": [blocks(block_size=0)],
    "blocks of a size that is not told": [blocks(block_size=None)],
    "blocks of too many bits": [blocks(bits=64)],
    "blocks without scales": [blocks(["x", "x"])],
    "a product of one": [make_node("FusedMatMul", ["x"], ["y"], domain="com.microsoft")],
}


@pytest.mark.parametrize("case", REFUSED)
def test_graphs_that_cannot_be(case: str, tmp_path: Path) -> None:
    refused(write(REFUSED[case], tmp_path))


CHANGES: dict[str, Callable[[ModelProto], object]] = {
    "an input twice": lambda model: model.graph.input.add().CopyFrom(model.graph.input[0]),
    "an output twice": lambda model: model.graph.output.add().CopyFrom(model.graph.output[0]),
    "a tensor without a name": lambda model: model.graph.initializer.add(data_type=1),
    "a tensor twice": lambda model: [model.graph.initializer.add(data_type=1, name="w", dims=[0]) for _ in range(2)],
    "an input of no known type": lambda model: setattr(model.graph.input[0].type.tensor_type, "elem_type", 77),
    "a negative dimension": lambda model: setattr(model.graph.input[0].type.tensor_type.shape.dim[0], "dim_value", -2),
    "an opset below the first": lambda model: setattr(model.opset_import[0], "version", 0),
    "an opset beyond number": lambda model: setattr(model.opset_import[0], "version", 2**40),
}


@pytest.mark.parametrize("case", CHANGES)
def test_models_that_cannot_be(case: str, tmp_path: Path) -> None:
    refused(write([make_node("Neg", ["x"], ["y"])], tmp_path, CHANGES[case]))


def add_weight(model: ModelProto, place: str) -> None:
    weight = model.graph.initializer.add(name="w", data_type=FLOAT, dims=[0], data_location=TensorProto.EXTERNAL)
    weight.external_data.add(key=place if place == "key!" else "location", value=place)


NAMES: dict[str, Callable[[ModelProto], object]] = {
    "node": lambda model: setattr(model.graph.node[0], "name", "node"),
    "graph": lambda model: setattr(model.graph, "name", "graph"),
    "file": lambda model: add_weight(model, "file"),
    "key!": lambda model: add_weight(model, "key!"),
    "size": lambda model: setattr(model.graph.input[0].type.tensor_type.shape.dim[0], "dim_param", "size"),
    "domain": lambda model: model.opset_import.add(domain="domain", version=1),
}


@pytest.mark.parametrize("name", NAMES)
def test_a_name_that_is_no_text(name: str, tmp_path: Path) -> None:
    path = write([make_node("Neg", ["x"], ["y"])], tmp_path, NAMES[name])
    path.write_bytes(path.read_bytes().replace(name.encode(), b"\xff" * len(name)))
    assert "UTF-8" in refused(path)
    assert external_files(path) == set()


def test_sparse_tensors_are_not_supported(tmp_path: Path) -> None:
    path = write([make_node("Neg", ["x"], ["y"])], tmp_path, lambda model: model.graph.sparse_initializer.add())
    refused(path, UnsupportedModelError)


def test_what_is_right_passes_and_is_put_in_order(tmp_path: Path) -> None:
    nodes = [
        make_node("Neg", ["b"], ["c"]),
        branching(make_graph([make_node("Add", ["c", "x"], ["b"])], "body", [], body(0).output)),
        make_node("Abs", ["x"], ["b"]),
    ]
    graph = read_graph(write(nodes, tmp_path))
    assert [node.op_type for node in graph.nodes] == ["Abs", "Neg", "If"]
    assert graph.nodes[-1].reads == ("x", "c", "x", "c", "x")


def test_operators_that_onnx_does_not_know_pass(tmp_path: Path) -> None:
    """onnxruntime has some of its own in the standard domain, and newer ones than this onnx."""
    assert len(read_graph(write([make_node("SimplifiedLayerNormalization", ["x", "x"], ["y"])], tmp_path)).nodes) == 1


def test_an_unknown_dimension_may_be_minus_one(tmp_path: Path) -> None:
    path = write([make_node("Neg", ["x"], ["y"])], tmp_path)
    model = onnx.load(path)
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = -1
    path.write_bytes(model.SerializeToString())
    assert read_graph(path).inputs[0].shape == (None, 2)
