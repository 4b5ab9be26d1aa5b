"""The walk over an .onnx file that leaves large weights where they lie."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnx.helper
import onnx.numpy_helper
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hybrid.errors import ModelError, ModelFileError
from hybrid.formats.onnx_graph import read_graph
from hybrid.formats.onnx_weights import SMALL_TENSOR_BYTES, strip_weights
from offload.storage.weight_file import FileRange, WeightFile

_RNG = np.random.default_rng(0)
LARGE = _RNG.standard_normal((20, 30)).astype(np.float32)  # 2400 bytes
EXACT = np.arange(256, dtype=np.float32)  # 1024 bytes, the smallest that is taken out
JUST_UNDER = np.arange(255, dtype=np.float32)
SMALL = np.array([3, 1, 4], np.int64)


def model_bytes(tensors: Sequence[onnx.TensorProto]) -> bytes:
    """A model that reads each of its tensors once, with an inner graph and every kind of attribute."""
    names = [tensor.name for tensor in tensors]
    body = onnx.helper.make_graph(
        [onnx.helper.make_node("Identity", [names[0]], ["inner"])],
        "body",
        [],
        [onnx.helper.make_tensor_value_info("inner", onnx.TensorProto.FLOAT, None)],
    )
    nodes = [
        *(onnx.helper.make_node("Identity", [name], [f"{name}/copy"]) for name in names),
        onnx.helper.make_node("Constant", [], ["constant"], value=onnx.numpy_helper.from_array(SMALL)),
        onnx.helper.make_node("Odd", ["x"], ["y"], floats=[1.5, 2.5], text="word", number=7, domain="odd"),
        onnx.helper.make_node("If", ["condition"], ["z"], then_branch=body, else_branch=body),
    ]
    inputs = [
        onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, "S"]),
        onnx.helper.make_tensor_value_info("condition", onnx.TensorProto.BOOL, []),
    ]
    outputs = [onnx.helper.make_tensor_value_info("z", onnx.TensorProto.FLOAT, None)]
    graph = onnx.helper.make_graph(nodes, "main", inputs, outputs, list(tensors))
    content: bytes = onnx.helper.make_model(graph, producer_name="tests").SerializeToString()
    return content


def tensor(name: str, values: npt.NDArray[np.generic]) -> onnx.TensorProto:
    return onnx.numpy_helper.from_array(np.asarray(values), name)


def inline_model() -> bytes:
    return model_bytes(
        [tensor("large", LARGE), tensor("small", SMALL), tensor("exact", EXACT), tensor("under", JUST_UNDER)]
    )


def test_ranges_are_the_bytes_of_the_tensors(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(inline_model())
    _, ranges = strip_weights(path)
    assert ranges.keys() == {"large", "exact"}
    content = path.read_bytes()
    for name, expected in (("large", LARGE), ("exact", EXACT)):
        found = ranges[name]
        assert (found.path, found.nbytes) == (path, expected.nbytes)
        assert content[found.offset : found.offset + found.nbytes] == expected.tobytes()


def test_the_rest_of_the_message_is_the_model_without_those_bytes(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(inline_model())
    message, _ = strip_weights(path)
    stripped, expected = onnx.ModelProto(), onnx.ModelProto()
    stripped.ParseFromString(message)
    expected.ParseFromString(inline_model())
    for proto in expected.graph.initializer:
        if proto.name in ("large", "exact"):
            proto.ClearField("raw_data")
    assert stripped == expected
    assert expected.graph.initializer[3].raw_data == JUST_UNDER.tobytes()
    assert len(inline_model()) - len(message) >= LARGE.nbytes + EXACT.nbytes


def test_a_name_behind_the_data_is_found_and_typed_data_stays(tmp_path: Path) -> None:
    """Protobuf fields come in any order: here name (field 8, tag 0x42) is moved behind raw_data."""
    raw = tensor("late", LARGE).SerializeToString()
    name = b"\x42\x04late"
    assert raw.count(name) == 1
    late = raw.replace(name, b"") + name
    typed = onnx.helper.make_tensor("typed", onnx.TensorProto.FLOAT, LARGE.shape, LARGE.reshape(-1))
    model = onnx.ModelProto()
    model.ParseFromString(model_bytes([typed]))
    graph = model.graph.SerializeToString() + b"\x2a" + _varint(len(late)) + late
    path = tmp_path / "model.onnx"
    path.write_bytes(b"\x3a" + _varint(len(graph)) + graph)
    message, ranges = strip_weights(path)
    offset = path.read_bytes().index(LARGE.tobytes(), path.stat().st_size - LARGE.nbytes - 100)
    assert ranges == {"late": FileRange(WeightFile.at(path), offset, LARGE.nbytes)}
    stripped = onnx.ModelProto()
    stripped.ParseFromString(message)
    assert [t.name for t in stripped.graph.initializer] == ["typed", "late"]
    assert list(stripped.graph.initializer[0].float_data) == LARGE.reshape(-1).tolist()


def test_external_tensors_stay_in_the_message(tmp_path: Path) -> None:
    proto = onnx.TensorProto(name="far", data_type=1, dims=[1000], data_location=onnx.TensorProto.EXTERNAL)
    proto.external_data.add(key="location", value="far.bin")
    path = tmp_path / "model.onnx"
    path.write_bytes(model_bytes([proto]))
    message, ranges = strip_weights(path)
    assert (message, ranges) == (path.read_bytes(), {})


def test_an_empty_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"")
    with pytest.raises(ModelFileError, match=r"model\.onnx: the file is empty"):
        strip_weights(path)


@pytest.mark.parametrize("cut_bytes", [1, 100, SMALL_TENSOR_BYTES, 3000])
def test_a_truncated_file_says_so(cut_bytes: int, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(inline_model()[:-cut_bytes])
    with pytest.raises(ModelFileError, match="truncated"):
        strip_weights(path)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(min_size=0, max_size=200))
def test_garbage_is_refused_or_walked_and_nothing_else(content: bytes, tmp_path: Path) -> None:
    _read_or_refuse(tmp_path / "model.onnx", content)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_mutated_models_are_refused_or_read_and_nothing_else(data: st.DataObject, tmp_path: Path) -> None:
    """Bytes of a real model are changed outside its large weights, where every one has a meaning; then cut."""
    content = bytearray(inline_model())
    large = bytes(content).index(LARGE.tobytes())
    exact = bytes(content).index(EXACT.tobytes())
    telling = [*range(large), *range(large + LARGE.nbytes, exact), *range(exact + EXACT.nbytes, len(content))]
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.sampled_from(telling))] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(0, len(content))) :]
    _read_or_refuse(tmp_path / "model.onnx", bytes(content))


def _read_or_refuse(path: Path, content: bytes) -> None:
    """A broken file is a ModelFileError on one line, or it reads with every range inside it."""
    path.write_bytes(content)
    message = ""
    ranges: dict[str, FileRange] = {}
    try:
        _, ranges = strip_weights(path)
        read_graph(path)
    except ModelError as error:
        message = str(error)
    assert message.isprintable()
    assert len(message) < 500 + len(str(path))
    assert all(r.offset >= 0 and r.offset + r.nbytes <= len(content) for r in ranges.values())


def _varint(value: int) -> bytes:
    encoded = b""
    while value > 0x7F:
        encoded, value = encoded + bytes([value & 0x7F | 0x80]), value >> 7
    return encoded + bytes([value])
