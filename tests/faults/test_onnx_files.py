"""Broken, hostile and unsupported ONNX models: one line, of the right kind, with the file and the thing."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import NodeProto, TensorProto, ValueInfoProto
from onnx.helper import make_graph, make_model, make_node, make_opsetid, make_tensor_value_info
from onnx.numpy_helper import from_array

from hybrid.errors import EngineError, ModelError, ModelFileError, UnsupportedModelError
from hybrid.formats.onnx_decoder import open_onnx
from hybrid.graph.decoder import Decoder
from hybrid.loading.open_engine import open_engine
from hybrid.loading.settings import RunSettings
from hybrid.source.folder import find_model
from tests import messages
from tests.onnx_decoders import HEAD_DIM, IDS, MASK, PASTS, embedded, gqa, gqa_tensors, save

WEIGHT = np.arange(64, dtype=np.float32).reshape(8, 8)  # 256 bytes


def value(name: str, shape: Sequence[int | str] | None, element_type: int = TensorProto.FLOAT) -> ValueInfoProto:
    return make_tensor_value_info(name, element_type, shape)


def ids(name: str = "input_ids") -> ValueInfoProto:
    return value(name, [1, "S"], TensorProto.INT64)


def past(name: str, element_type: int = TensorProto.FLOAT) -> ValueInfoProto:
    return value(name, [1, 2, "P", 4], element_type)


def external(location: str = "weights.bin", dims: Sequence[int] = (8, 8), **entries: object) -> TensorProto:
    proto = TensorProto(name="w", data_type=1, dims=dims, data_location=TensorProto.EXTERNAL)
    for key, text in {"location": location, **entries}.items():
        proto.external_data.add(key=key, value=str(text))
    return proto


def write(
    folder: Path,
    weight: TensorProto | None = None,
    inputs: Sequence[ValueInfoProto] | None = None,
    outputs: Sequence[str] = ("logits", "opkv0"),
) -> Path:
    """A decoder of one table: embed, multiply, and a cache that is handed on."""
    given = [ids(), past("pkv0")] if inputs is None else inputs
    tokens = next(info.name for info in given if info.type.tensor_type.elem_type == TensorProto.INT64)
    cached = next((info.name for info in given if info.name != tokens), "h")
    nodes = [
        make_node("Gather", ["w", tokens], ["h"]),
        make_node("MatMul", ["h", "w"], ["logits"]),
        make_node("Identity", [cached], ["opkv0"]),
    ]
    graph = make_graph(
        nodes,
        "main",
        given,
        [value(name, None) for name in outputs],
        [from_array(WEIGHT, "w") if weight is None else weight],
    )
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "model.onnx"
    path.write_bytes(make_model(graph, opset_imports=[make_opsetid("", 18)]).SerializeToString())
    return path


def open_path(path: Path) -> Decoder:
    return open_onnx(find_model(path), 64)


def one_line(kind: type[ModelError], path: Path, *mentions: str) -> None:
    messages.one_line(kind, lambda: open_path(path), str(path), *mentions)


def test_the_model_of_these_tests_opens(tmp_path: Path) -> None:
    decoder = open_path(write(tmp_path))
    assert [(pair.past, pair.present) for pair in decoder.cache] == [("pkv0", "opkv0")]
    assert (decoder.vocab_size, decoder.graph.initializers["w"].array().sum()) == (8, WEIGHT.sum())


@pytest.mark.parametrize("location", ["../weights.bin", "sub/../../weights.bin", "a\\b", "new\nline", "nul\0", "", "."])
def test_external_names_that_are_no_plain_relative_path(location: str, tmp_path: Path) -> None:
    (tmp_path / "weights.bin").write_bytes(WEIGHT.tobytes())
    mention = "is missing" if location == "." else "must be a plain relative path"
    one_line(ModelFileError, write(tmp_path / "model", external(location)), "tensor 'w'", mention)


def test_an_absolute_external_name(tmp_path: Path) -> None:
    (tmp_path / "weights.bin").write_bytes(WEIGHT.tobytes())
    path = write(tmp_path, external(str(tmp_path / "weights.bin")))
    one_line(ModelFileError, path, "tensor 'w'", "must be a plain relative path")


def test_a_link_that_leaves_the_folder(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(WEIGHT.tobytes())
    path = write(tmp_path / "model", external())
    (tmp_path / "model" / "weights.bin").symlink_to(tmp_path / "secret")
    one_line(ModelFileError, path, "tensor 'w'", "leads out of its folder", str(tmp_path / "secret"))


def test_a_folder_link_that_leaves_the_folder(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "weights.bin").write_bytes(WEIGHT.tobytes())
    path = write(tmp_path / "model", external("sub/weights.bin"))
    (tmp_path / "model" / "sub").symlink_to(tmp_path / "other")
    one_line(ModelFileError, path, "tensor 'w'", "leads out of its folder")


def test_a_link_within_the_folder_is_followed(tmp_path: Path) -> None:
    (tmp_path / "real.bin").write_bytes(WEIGHT.tobytes())
    path = write(tmp_path, external())
    (tmp_path / "weights.bin").symlink_to("real.bin")
    assert open_path(path).graph.initializers["w"].array().sum() == WEIGHT.sum()


@pytest.mark.parametrize("subfolder", ["", "onnx"])
def test_the_hub_cache_links_into_its_blobs(subfolder: str, tmp_path: Path) -> None:
    """models--org--name/snapshots/<revision>/[onnx/]<file> -> models--org--name/blobs/<hash>."""
    repository = tmp_path / "models--org--name"
    folder = repository / "snapshots" / "abc" / subfolder
    (repository / "blobs").mkdir(parents=True)
    (repository / "blobs" / "1").write_bytes(WEIGHT.tobytes())
    path = write(folder, external())
    path.rename(repository / "blobs" / "2")
    path.symlink_to(repository / "blobs" / "2")
    (folder / "weights.bin").symlink_to(repository / "blobs" / "1")
    assert open_path(path).graph.initializers["w"].array().sum() == WEIGHT.sum()
    (folder / "weights.bin").unlink()
    other = tmp_path / "models--org--other" / "blobs"
    other.mkdir(parents=True)
    (other / "1").write_bytes(WEIGHT.tobytes())
    (folder / "weights.bin").symlink_to(other / "1")
    one_line(ModelFileError, path, "tensor 'w'", "leads out of its folder")


def test_a_missing_external_file(tmp_path: Path) -> None:
    one_line(ModelFileError, write(tmp_path, external()), "tensor 'w'", "weights.bin is missing")


@pytest.mark.parametrize("obstacle", ["circle", "folder", "long name"])
def test_an_external_file_that_cannot_be_opened(obstacle: str, tmp_path: Path) -> None:
    path = write(tmp_path, external("x" * 3000 if obstacle == "long name" else "weights.bin"))
    if obstacle == "circle":
        (tmp_path / "weights.bin").symlink_to(tmp_path / "weights.bin")
    elif obstacle == "folder":
        (tmp_path / "weights.bin").mkdir()
    one_line(ModelFileError, path, "tensor 'w'")


@pytest.mark.parametrize(
    ("entries", "mention"),
    [
        ({"offset": 1}, "bytes 1 to 257 lie outside"),
        ({"offset": 256}, "bytes 256 to 512 lie outside"),
        ({"offset": -4}, "bytes -4 to 252 lie outside"),
        ({"length": 257}, "bytes 0 to 257 lie outside"),
        ({"length": -1}, "lie outside"),
        ({"offset": 2**64}, "lie outside"),
        ({"offset": "four"}, "is no number"),
        ({"length": ""}, "is no number"),
        ({"length": 252}, "252 bytes stored, its shape and type take 256"),
        ({"dims": (8, 9)}, "bytes 0 to 288 lie outside"),
        ({"dims": (8, 7), "length": 256}, "256 bytes stored, its shape and type take 224"),
        ({"dims": (8, -8)}, "negative dimension in [8, -8]"),
        ({"dims": (2**32, 2**32), "length": 0}, "more than the"),
        ({"dims": (2**41, 0), "length": 0}, "dimension above"),
        ({"dims": (0,) * 33, "length": 0}, "33 dimensions"),
    ],
)
def test_external_ranges_that_cannot_be(entries: dict[str, object], mention: str, tmp_path: Path) -> None:
    (tmp_path / "weights.bin").write_bytes(WEIGHT.tobytes())
    one_line(ModelFileError, write(tmp_path, external(**entries)), "tensor 'w'", mention)  # type: ignore[arg-type]


def test_a_truncated_external_file(tmp_path: Path) -> None:
    (tmp_path / "weights.bin").write_bytes(WEIGHT.tobytes()[:-1])
    one_line(ModelFileError, write(tmp_path, external()), "tensor 'w'", "weights.bin, which has 255")


def test_inline_bytes_that_do_not_fit_the_shape(tmp_path: Path) -> None:
    weight = TensorProto(name="w", data_type=1, dims=[8, 9], raw_data=WEIGHT.tobytes())
    one_line(ModelFileError, write(tmp_path, weight), "tensor 'w'")


def test_an_element_type_from_the_future(tmp_path: Path) -> None:
    weight = TensorProto(name="w", data_type=99, dims=[8, 8], raw_data=bytes(64))
    one_line(ModelFileError, write(tmp_path, weight), "tensor 'w'", "unknown element type 99")


def test_files_that_are_no_models(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    no_nodes = onnx.ModelProto(ir_version=8, producer_name="tests").SerializeToString()
    cases: dict[bytes, str] = {
        b"": "the file is empty",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n": "not an ONNX file",
        b"<!doctype html><title>404</title>": "not an ONNX file",
        bytes(4096): "not an ONNX file",
        no_nodes: "holds no graph",
    }
    for content, mention in cases.items():
        path.write_bytes(content)
        one_line(ModelFileError, path, mention)


def test_a_truncated_model(tmp_path: Path) -> None:
    path = write(tmp_path)
    path.write_bytes(path.read_bytes()[:-20])
    one_line(ModelFileError, path, "truncated")


def test_local_functions(tmp_path: Path) -> None:
    path = write(tmp_path)
    model = onnx.load(path)
    model.functions.add(name="f", domain="own")
    path.write_bytes(model.SerializeToString())
    one_line(UnsupportedModelError, path, "1 local functions", "inlined")


UNSUPPORTED: dict[str, tuple[list[ValueInfoProto], tuple[str, ...], str]] = {
    "no logits": ([ids(), past("pkv0")], ("h", "opkv0"), "no output named logits; the outputs are h, opkv0"),
    "no cache": ([ids()], ("logits",), "no cache inputs we know"),
    "an unknown cache": ([ids(), past("cache_0")], ("logits",), "the inputs are input_ids, cache_0"),
    "no ids": ([ids("tokens"), past("pkv0")], ("logits", "opkv0"), "the inputs are pkv0, tokens"),
    "a past without a present": (
        [ids(), past("pkv0"), past("pkv1")],
        ("logits", "opkv0"),
        "input pkv1 has no output opkv1",
    ),
    "a cache of bytes": ([ids(), past("pkv0", TensorProto.UINT8)], ("logits", "opkv0"), "'pkv0' is UINT8"),
    "a flat cache": ([ids(), value("pkv0", [1, "P"])], ("logits", "opkv0"), "'pkv0' is (1, 'P')"),
    "an odd cache": ([ids(), value("pkv0", [1, "H", "P", 4])], ("logits", "opkv0"), "'pkv0'"),
    "a cache of no shape": ([ids(), value("pkv0", None)], ("logits", "opkv0"), "'pkv0'"),
}


@pytest.mark.parametrize("case", UNSUPPORTED)
def test_interfaces_that_we_cannot_feed(case: str, tmp_path: Path) -> None:
    inputs, outputs, mention = UNSUPPORTED[case]
    one_line(UnsupportedModelError, write(tmp_path, None, inputs, outputs), mention)


@pytest.mark.parametrize("operator", ["ConstantOfShape", "Range", "Expand"])
def test_a_small_file_that_makes_huge_tensors(operator: str, tmp_path: Path) -> None:
    path = write(tmp_path)
    model = onnx.load(path)
    shape, number = from_array(np.array([1 << 15, 1 << 15]), "shape"), from_array(np.float32(1 << 30), "many")
    zero, one = from_array(np.float32(0), "zero"), from_array(np.float32(1), "step")
    model.graph.initializer.extend([shape, number, zero, one])
    inputs = {"ConstantOfShape": ["shape"], "Range": ["zero", "many", "step"], "Expand": ["zero", "shape"]}
    model.graph.node.insert(0, make_node(operator, inputs[operator], ["huge"]))
    model.graph.node[-1].input[0] = "huge"  # which gives opkv0
    path.write_bytes(model.SerializeToString())
    one_line(ModelFileError, path, operator)


def _running(nodes: Sequence[NodeProto], folder: Path, inputs: Sequence[ValueInfoProto] = (IDS, MASK, *PASTS)) -> None:
    """Read three tokens with a model of these nodes."""
    save(folder, [*embedded(), *nodes], gqa_tensors(rows=64), inputs)
    with open_engine(RunSettings(model=folder, cuda="0", context_tokens=16, host_dtype="int8")) as engine:
        engine.prefill([1, 2, 3])


def _with_lengths(nodes: Sequence[NodeProto], source: str) -> list[NodeProto]:
    """The nodes, with lengths of an attention that are made of something else."""
    made = make_node("Cast", [source], ["lengths"], to=TensorProto.INT32)
    return [made if "lengths" in node.output else node for node in nodes]


def test_an_attention_of_tensors_that_are_not_its_own(tmp_path: Path) -> None:
    _running(gqa(), tmp_path / "right")
    with pytest.raises(ModelFileError, match=r"attention 'layers\.0/attention'.*last_position"):
        _running(_with_lengths(gqa(), "attention_mask"), tmp_path / "lengths")


def test_a_cache_that_no_machine_has_room_for(tmp_path: Path) -> None:
    pasts = [value(info.name, [1, 2**40, "P", HEAD_DIM]) for info in PASTS]
    with pytest.raises(EngineError, match="RAM does not suffice"):
        _running(gqa(), tmp_path, (IDS, MASK, *pasts))


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_flipped_byte_is_an_error_of_ours_or_none(data: st.DataObject, tmp_path: Path) -> None:
    content = bytearray(write(tmp_path).read_bytes())
    weight = bytes(content).index(WEIGHT.tobytes())
    telling = [*range(weight), *range(weight + WEIGHT.nbytes, len(content))]
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.sampled_from(telling))] = data.draw(st.integers(0, 255))
    path = tmp_path / "model.onnx"
    path.write_bytes(bytes(content))
    assert _refusal(path).isprintable()


def _refusal(path: Path) -> str:
    """Open a file; give the error, or nothing."""
    try:
        open_path(path)
    except ModelError as error:
        return str(error)
    return ""


def test_an_attention_of_positions_that_are_no_matrix(tmp_path: Path) -> None:
    """onnxruntime would abort the process in its first step."""
    nodes = gqa()
    next(node for node in nodes if node.op_type == "GroupQueryAttention").input.append("one")
    save(tmp_path, [*embedded(), *nodes], gqa_tensors(rows=64), (IDS, MASK, *PASTS))
    with pytest.raises(ModelFileError, match=r"'layers\.0/attention': input 10, 'one'"):
        open_path(tmp_path)
