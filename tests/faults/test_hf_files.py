"""Broken, hostile and unsupported Hugging Face folders: one line, of the right kind, with file and value."""

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hybrid.errors import ModelConfigError, ModelError, ModelFileError, UnsupportedModelError
from hybrid.model.builders import open_huggingface
from hybrid.model.hf_config import parse_config
from hybrid.model.safetensors import read_index
from hybrid.model.source import find_model
from tests.hf_models import random_weights, raw_safetensors, safetensors_bytes, tiny_config, write_model
from tests.messages import one_line


def entry(dtype: Any = "F32", shape: Any = (2,), data_offsets: Any = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": data_offsets}


HEADERS: dict[str, tuple[Any, str]] = {
    "not JSON": (b"{nonsense", "not valid JSON"),
    "not UTF-8": (b'{"\xff\xfe": 1}', "not valid JSON"),
    "a list": (b"[1, 2]", "JSON object"),
    "spaces before": (b"   {}", "first byte"),
    "nested": (b'{"a":' + b"[" * 100_000, "not valid JSON"),
    "a huge number": (b'{"a":' + b"9" * 10_000 + b"}", "not valid JSON"),
    "a name twice": (b'{"aa": {}, "aa": {}}', "'aa' twice"),
    "no entry": ({"t": 3}, "tensor 't' is 3"),
    "keys missing": ({"t": {"dtype": "F32"}}, "shape None"),
    "dtype unknown": ({"t": entry("F31")}, "'F31'"),
    "dtype no text": ({"t": entry(["F32"])}, "['F32']"),
    "shape negative": ({"t": entry(shape=[-2])}, "[-2]"),
    "shape float": ({"t": entry(shape=[2.0])}, "[2.0]"),
    "shape bool": ({"t": entry(shape=[True])}, "[True]"),
    "shape text": ({"t": entry(shape="2")}, "'2'"),
    "shape huge": ({"t": entry(shape=[2**40, 2**40])}, "1099511627776"),
    "shape beyond all": ({"t": entry(shape=[0, 2**70])}, "shape"),
    "too many dimensions": ({"t": entry(shape=[1] * 100)}, "shape"),
    "offsets beyond the end": ({"t": entry(shape=[3], data_offsets=[0, 12])}, "[0, 12]"),
    "offsets negative": ({"t": entry(data_offsets=[-8, 0])}, "[-8, 0]"),
    "offsets backwards": ({"t": entry(data_offsets=[8, 0])}, "[8, 0]"),
    "offsets three": ({"t": entry(data_offsets=[0, 4, 8])}, "[0, 4, 8]"),
    "too few bytes": ({"t": entry(data_offsets=[0, 7])}, "7 bytes"),
    "overlap": ({"t": entry(), "u": entry(shape=[1], data_offsets=[4, 8])}, "'t' and 'u' overlap"),
    "odd name": ({"line\nbreak\ud800" + "x" * 500: 1}, "\\n"),
}


@pytest.mark.parametrize("case", HEADERS)
def test_headers_that_lie(case: str, tmp_path: Path) -> None:
    header, mention = HEADERS[case]
    path = tmp_path / "model.safetensors"
    path.write_bytes(raw_safetensors(header, bytes(8)))
    one_line(ModelFileError, lambda: read_index([path]), str(path), mention)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"1234567",
        struct.pack("<Q", 0),
        struct.pack("<Q", 50) + b"{}",
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", 100_000_001) + b"{}",
    ],
)
def test_files_too_short_for_their_header(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    one_line(ModelFileError, lambda: read_index([path]), str(path), f"a file of {len(content)}")


def test_a_file_cut_off_in_its_data(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(safetensors_bytes({"t": ("F32", np.ones(4, np.float32))})[:-1])
    one_line(ModelFileError, lambda: read_index([path]), "[0, 16]", "15 data bytes")


def test_a_git_lfs_pointer(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 14000000000\n")
    one_line(ModelFileError, lambda: read_index([path]), "Git LFS")


def test_a_type_that_onnx_has_no_name_for(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(raw_safetensors({"t": entry("F8_E8M0")}, bytes(8)))
    one_line(UnsupportedModelError, lambda: read_index([path]), "F8_E8M0")


def test_a_tensor_in_two_shards(tmp_path: Path) -> None:
    files = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    for file in files:
        file.write_bytes(safetensors_bytes({"t": ("F32", np.ones(1, np.float32))}))
    one_line(ModelFileError, lambda: read_index(files), "b.safetensors", "'t'", "a.safetensors")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    one_line(ModelFileError, lambda: read_index([path]), str(path))
    path.mkdir()
    one_line(ModelFileError, lambda: read_index([path]), str(path))
    os.mkfifo(tmp_path / "pipe.safetensors")  # reading it would wait for ever
    one_line(ModelFileError, lambda: read_index([tmp_path / "pipe.safetensors"]), "pipe")


def test_no_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_model(tmp_path, tiny_config(), random_weights(tiny_config()))

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    # Not by chmod: tests may run as root, who may read everything.
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", refuse)
        one_line(ModelFileError, lambda: read_index([tmp_path / "model.safetensors"]), "Permission denied")
        one_line(ModelFileError, lambda: find_model(tmp_path), "config.json", "Permission denied")
    with monkeypatch.context() as patch:
        patch.setattr(os, "listdir", refuse)
        one_line(ModelFileError, lambda: find_model(tmp_path), str(tmp_path), "Permission denied")


def test_links_out_of_the_folder(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(safetensors_bytes({"t": ("F32", np.ones(1, np.float32))}))
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    link = folder / "model.safetensors"
    link.symlink_to("../secret")
    one_line(ModelFileError, lambda: read_index([link]), str(link), str(secret))
    link.unlink()
    link.symlink_to(link)
    one_line(ModelFileError, lambda: read_index([link]), str(link))


def test_a_snapshot_may_not_link_into_another_repository(tmp_path: Path) -> None:
    other = tmp_path / "models--other--name" / "blobs" / "0123"
    other.parent.mkdir(parents=True)
    other.write_bytes(safetensors_bytes({"t": ("F32", np.ones(1, np.float32))}))
    link = tmp_path / "models--org--name" / "snapshots" / "main" / "model.safetensors"
    link.parent.mkdir(parents=True)
    link.symlink_to(other)
    one_line(ModelFileError, lambda: read_index([link]), str(link))


VALID = safetensors_bytes(
    {"first": ("F32", np.arange(6, dtype=np.float32).reshape(2, 3)), "b": ("F16", np.ones(4, np.float16))}
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    edits=st.lists(st.tuples(st.integers(0, len(VALID) - 1), st.integers(0, 255)), min_size=1, max_size=6),
    keep=st.integers(0, len(VALID)) | st.just(len(VALID)),
)
def test_no_mutation_does_anything_but_open_or_be_refused(
    edits: list[tuple[int, int]], keep: int, tmp_path: Path
) -> None:
    content = bytearray(VALID)
    for position, value in edits:
        content[position] = value
    path = tmp_path / "model.safetensors"
    path.write_bytes(content[:keep])
    index, refusal = {}, ""
    try:
        index = read_index([path])
    except ModelError as error:
        refusal = str(error)
    assert refusal.isprintable()
    for tensor in index.values():
        assert 0 <= tensor.source.offset <= tensor.source.offset + tensor.source.nbytes <= keep


FOLDERS: dict[str, tuple[type[ModelError], list[str], list[str]]] = {
    "empty": (ModelFileError, [], ["it is empty"]),
    "no model": (ModelFileError, ["README.md"], ["found README.md"]),
    "only pickles": (
        UnsupportedModelError,
        ["config.json", "pytorch_model.bin"],
        ["pytorch_model.bin", "safetensors"],
    ),
    "only GGUF": (UnsupportedModelError, ["m.Q4_K.gguf"], ["m.Q4_K.gguf", "ONNX"]),
    "only pth": (UnsupportedModelError, ["consolidated.00.pth"], ["consolidated.00.pth"]),
    "no config": (ModelFileError, ["model.safetensors"], ["no config.json"]),
    "an adapter": (
        UnsupportedModelError,
        ["adapter_config.json", "adapter_model.safetensors"],
        ["LoRA adapter"],
    ),
    "a shard missing": (
        ModelFileError,
        ["config.json", "model-00001-of-00003.safetensors", "model-00003-of-00003.safetensors"],
        ["model-00002-of-00003.safetensors"],
    ),
    "shards of many models": (
        ModelFileError,
        ["config.json", *(f"{stem}-00001-of-00001.safetensors" for stem in "abcdef")],
        ["several safetensors files", "and 2 more"],
    ),
    "unrelated files": (ModelFileError, ["config.json", "a.safetensors", "b.safetensors"], ["a.safetensors"]),
    "several ONNX files": (ModelFileError, ["a.onnx", "b.onnx"], ["a.onnx, b.onnx", "give the path of one"]),
    "a cache repository": (ModelFileError, ["blobs/x", "snapshots/main/config.json"], ["snapshots/"]),
    "a line break": (ModelFileError, ["a\nb"], ["'a\\nb'"]),
}


@pytest.mark.parametrize("case", FOLDERS)
def test_folders_that_are_no_model(case: str, tmp_path: Path) -> None:
    kind, names, mentions = FOLDERS[case]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("{}")
    one_line(kind, lambda: find_model(tmp_path), str(tmp_path), *mentions)


def test_paths_that_are_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    one_line(ModelFileError, lambda: find_model(tmp_path / "nowhere"), "nowhere", "no such folder")
    one_line(ModelFileError, lambda: find_model("mistralai/Mistral-7B-v0.1"), "no such folder")
    one_line(ModelFileError, lambda: find_model("a\0b"), "a\\x00b")
    one_line(ModelFileError, lambda: find_model("x" * 300), "cannot be opened")
    (tmp_path / "model.gguf").write_text("")
    one_line(ModelFileError, lambda: find_model("model.gguf"), "model.gguf", "folder")
    (tmp_path / "broken").symlink_to("nothing")
    one_line(ModelFileError, lambda: find_model("broken"), "broken link")


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "\ud800", '{"a":' + "[" * 100_000])
def test_configs_that_are_no_object(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    one_line(ModelFileError, lambda: find_model(tmp_path), str(tmp_path / "config.json"), "JSON")


@pytest.mark.parametrize(
    "weight_map",
    [
        None,
        {},
        ["model.safetensors"],
        {"t": "../secret.safetensors"},
        {"t": "/etc/passwd.safetensors"},
        {"t": "sub/a.safetensors"},
        {"t": "..\\a.safetensors"},
        {"t": "a.bin"},
        {"t": ["a.safetensors"]},
        {"t": "a\0.safetensors"},
    ],
)
def test_indexes_that_name_odd_files(weight_map: object, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    one_line(ModelFileError, lambda: find_model(tmp_path), str(index), "weight_map")


def test_an_index_whose_shards_are_missing(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    names = [f"model-{number:05d}-of-00009.safetensors" for number in range(1, 10)]
    weight_map = {f"t{number}": name for number, name in enumerate(names)}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    one_line(ModelFileError, lambda: find_model(tmp_path), names[0], "and 5 more")


WHOLE_KEYS = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "vocab_size",
    "max_position_embeddings",
)


@pytest.mark.parametrize("key", WHOLE_KEYS)
@pytest.mark.parametrize("value", [..., -1, 0, "32", 32.0, float("nan"), True, [32], {}, 10**30])
def test_sizes_that_cannot_be(key: str, value: Any) -> None:
    config = tiny_config("mistral", **{key: value})
    mention = "is missing" if value is ... else repr(value)
    one_line(ModelConfigError, lambda: parse_config(config, "some/config.json"), "some/config.json", key, mention)


LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
QWEN_SLIDES = {"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 4}
BAD_VALUES: list[tuple[dict[str, Any], str]] = [
    ({"model_type": ...}, "model_type is missing"),
    ({"model_type": 3}, "model_type is 3"),
    ({"num_attention_heads": 5, "head_dim": 8}, "num_key_value_heads is 2"),
    ({"num_attention_heads": 6, "num_key_value_heads": 3}, "hidden_size is 32"),
    ({"head_dim": 0}, "head_dim is 0"),
    ({"head_dim": 7}, "head_dim is 7"),
    ({"head_dim": "8"}, "head_dim is '8'"),
    ({"rms_norm_eps": 0}, "rms_norm_eps is 0"),
    ({"rms_norm_eps": "1e-5"}, "rms_norm_eps is '1e-5'"),
    ({"rms_norm_eps": None}, "rms_norm_eps is None"),
    ({"rms_norm_eps": float("nan")}, "rms_norm_eps is nan"),
    ({"rope_theta": -1.0}, "rope_theta is -1.0"),
    ({"rope_theta": float("inf")}, "rope_theta is inf"),
    ({"rope_theta": True}, "rope_theta is True"),
    ({"rope_scaling": "linear"}, "rope_scaling is 'linear'"),
    ({"rope_scaling": {"type": "linear"}}, "factor is missing"),
    ({"rope_scaling": {"type": "linear", "factor": 0}}, "factor is 0"),
    ({"rope_scaling": {**LLAMA3, "low_freq_factor": 4.0}}, "low_freq_factor is 4"),
    ({"rope_parameters": {**LLAMA3, "original_max_position_embeddings": "8192"}}, "'8192'"),
    ({"tie_word_embeddings": "yes"}, "tie_word_embeddings is 'yes'"),
    ({"attention_bias": 1}, "attention_bias is 1"),
    ({"mlp_bias": "false"}, "mlp_bias is 'false'"),
    ({"model_type": "mistral", "sliding_window": 0}, "sliding_window is 0"),
    ({"model_type": "mistral", "sliding_window": "4096"}, "sliding_window is '4096'"),
    ({**QWEN_SLIDES, "max_window_layers": -1}, "max_window_layers is -1"),
    ({**QWEN_SLIDES, "layer_types": ["full_attention"]}, "layer_types is ['full_attention']"),
    ({**QWEN_SLIDES, "layer_types": ["linear_attention"] * 2}, "linear_attention"),
    ({"torch_dtype": 16}, "torch_dtype is 16"),
    ({"dtype": "float8_e4m3fn"}, "dtype is 'float8_e4m3fn'"),
    ({"eos_token_id": "</s>"}, "eos_token_id is '</s>'"),
    ({"eos_token_id": [2, None]}, "eos_token_id is [2, None]"),
    ({"bos_token_id": True}, "bos_token_id is True"),
]


@pytest.mark.parametrize(("changes", "mention"), BAD_VALUES)
def test_values_that_cannot_be(changes: dict[str, Any], mention: str) -> None:
    config = {**tiny_config(**{k: v for k, v in changes.items() if k != "model_type"})}
    config = {k: v for k, v in (config | changes).items() if v is not ...}
    one_line(ModelConfigError, lambda: parse_config(config, "config.json"), "config.json", mention)


UNSUPPORTED: list[tuple[dict[str, Any], str]] = [
    *(
        ({"model_type": name}, f"model_type '{name}'")
        for name in ("mixtral", "qwen3_moe", "gpt2", "phi3", "gemma2", "falcon")
    ),
    ({"architectures": ["LlamaForSequenceClassification"]}, "LlamaForSequenceClassification"),
    ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
    ({"hidden_act": None}, "hidden_act is None"),
    ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
    *(({"rope_scaling": {"rope_type": name, "factor": 2.0}}, f"'{name}'") for name in ("yarn", "dynamic", "longrope")),
    ({"rope_parameters": {"full_attention": {"rope_type": "default"}}}, "rope_parameters"),
    *(
        ({"quantization_config": {"quant_method": name, "bits": 4}}, f"'{name}'")
        for name in ("gptq", "awq", "fp8", "bitsandbytes", "compressed-tensors")
    ),
]


@pytest.mark.parametrize(("changes", "mention"), UNSUPPORTED)
def test_what_is_not_supported(changes: dict[str, Any], mention: str) -> None:
    config = tiny_config() | changes
    message = one_line(UnsupportedModelError, lambda: parse_config(config, "config.json"), "config.json", mention)
    assert "model_type" not in changes or "llama, mistral, qwen2, qwen3" in message


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=300, deadline=None)
@given(
    family=st.sampled_from(["llama", "mistral", "qwen2", "qwen3"]),
    key=st.sampled_from([*tiny_config(), "head_dim", "rope_scaling", "rope_parameters", "sliding_window", "dtype"]),
    value=json_values,
)
def test_no_value_does_anything_but_parse_or_be_refused(family: str, key: str, value: Any) -> None:
    refusal = ""
    try:
        parse_config(tiny_config(family) | {"use_sliding_window": True, key: value}, "config.json")
    except ModelError as error:
        refusal = str(error)
    assert refusal.isprintable()


def broken(folder: Path, change: Callable[[dict[str, Any]], None], dtype: str = "F32") -> Callable[[], object]:
    """Opens a model whose tensors were changed; they are (type, array) pairs."""
    weights = random_weights(tiny_config())
    tensors: dict[str, Any] = {name: (dtype, weight) for name, weight in weights.items()}
    change(tensors)
    write_model(folder, tiny_config(), {})
    (folder / "model.safetensors").write_bytes(safetensors_bytes(tensors))
    return lambda: open_huggingface(find_model(folder), 64)


UP = "model.layers.1.mlp.up_proj.weight"


def test_a_missing_tensor(tmp_path: Path) -> None:
    call = broken(tmp_path, lambda tensors: tensors.pop(UP))
    one_line(ModelFileError, call, str(tmp_path / "model.safetensors"), UP, "[48, 32]")


def test_a_tensor_of_another_shape(tmp_path: Path) -> None:
    call = broken(tmp_path, lambda tensors: tensors.update({UP: ("F32", np.ones((32, 48), np.float32))}))
    one_line(ModelConfigError, call, str(tmp_path / "model.safetensors"), UP, "[32, 48]", "[48, 32]")


@pytest.mark.parametrize(("dtype", "array"), [("I8", np.int8), ("F8_E4M3", np.uint8), ("F64", np.float64)])
def test_a_tensor_of_another_type(dtype: str, array: Any, tmp_path: Path) -> None:
    call = broken(tmp_path, lambda tensors: tensors.update({UP: (dtype, np.ones((48, 32), array))}))
    one_line(UnsupportedModelError, call, UP, "must be FLOAT, FLOAT16 or BFLOAT16")


@pytest.mark.parametrize(
    "suffix",
    ["qweight", "weight_scale", "weight_scale_inv", "weight.absmax", "SCB", "lora_A.weight", "weight_packed"],
)
def test_quantised_weights_and_adapters(suffix: str, tmp_path: Path) -> None:
    name = UP.replace("weight", suffix)
    call = broken(tmp_path, lambda tensors: tensors.update({name: ("F32", np.ones(1, np.float32))}))
    kind = "adapter" if "lora" in suffix else "quantised"
    one_line(UnsupportedModelError, call, str(tmp_path / "model.safetensors"), name, kind)


def test_no_tensors_at_all(tmp_path: Path) -> None:
    one_line(
        ModelFileError,
        broken(tmp_path, lambda tensors: tensors.clear()),
        "model.safetensors: holds no tensors",
    )
