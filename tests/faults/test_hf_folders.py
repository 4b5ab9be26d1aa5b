"""Folders that are no Hugging Face model, or whose tensors are not those of the config: one line that names them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hybrid.errors import ModelConfigError, ModelError, ModelFileError, UnsupportedModelError
from hybrid.families import open_huggingface
from hybrid.source.folder import find_model
from tests.hf_models import random_weights, safetensors_bytes, tiny_config, write_model
from tests.messages import one_line

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
