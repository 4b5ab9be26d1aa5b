"""Paths: model folders, files, and what is neither."""

import json
from pathlib import Path

import pytest

from hybrid.source.folder import ModelFolder, find_model
from tests.hf_models import tiny_config


def make(folder: Path, *names: str) -> Path:
    """A folder with these files; JSON files hold an object."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}" if name.endswith(".json") else "x")
    return folder


def test_a_hugging_face_folder(tmp_path: Path) -> None:
    make(tmp_path, "model.safetensors", "tokenizer.model", "README.md")
    (tmp_path / "config.json").write_text(json.dumps(tiny_config()))
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [2, 3]}')
    assert find_model(tmp_path) == ModelFolder(
        folder=tmp_path,
        kind="huggingface",
        onnx=None,
        safetensors_files=(tmp_path / "model.safetensors",),
        config=tiny_config(),
        tokenizer_model=tmp_path / "tokenizer.model",
        generation_config={"eos_token_id": [2, 3]},
    )


def test_a_config_alone_is_enough_to_plan(tmp_path: Path) -> None:
    found = find_model(make(tmp_path, "config.json"))
    assert (found.kind, found.safetensors_files, found.config) == ("huggingface", (), {})


def test_shards_come_from_the_index(tmp_path: Path) -> None:
    make(tmp_path, "config.json", "a.safetensors", "b.safetensors", "consolidated.safetensors")
    weight_map = {"t0": "b.safetensors", "t1": "a.safetensors", "t2": "b.safetensors"}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    names = [path.name for path in find_model(tmp_path).safetensors_files]
    assert names == ["a.safetensors", "b.safetensors"]


def test_numbered_shards_need_no_index(tmp_path: Path) -> None:
    make(tmp_path, "config.json", "model-00002-of-00002.safetensors", "model-00001-of-00002.safetensors")
    names = [path.name for path in find_model(tmp_path).safetensors_files]
    assert names == ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (["model.onnx"], "model.onnx"),
        (["decoder_model.onnx", "decoder_model_merged.onnx"], "decoder_model_merged.onnx"),
        (["tiny.onnx", "config.json"], "tiny.onnx"),
        (["config.json", "onnx/model.onnx", "onnx/model_q4.onnx"], "onnx/model.onnx"),
        (["onnx/model_q4.onnx"], "onnx/model_q4.onnx"),
    ],
)
def test_the_onnx_file_of_a_folder(names: list[str], chosen: str, tmp_path: Path) -> None:
    found = find_model(make(tmp_path, *names))
    assert (found.kind, found.onnx) == ("onnx", tmp_path / chosen)
    assert (found.config is not None) == ("config.json" in names)


def test_safetensors_win_over_onnx_unless_the_file_is_named(tmp_path: Path) -> None:
    make(tmp_path, "config.json", "model.safetensors", "onnx/model.onnx")
    assert find_model(tmp_path).kind == "huggingface"
    named = find_model(tmp_path / "onnx" / "model.onnx")
    assert (named.kind, named.folder) == ("onnx", tmp_path)
    assert named.onnx == tmp_path / "onnx" / "model.onnx"


def test_a_cache_snapshot_has_its_repository_name(tmp_path: Path) -> None:
    snapshot = make(tmp_path / "models--org--some-name" / "snapshots" / "0a1b", "config.json")
    assert find_model(snapshot).name == "org/some-name"
    assert find_model(make(tmp_path / "plain", "config.json")).name == "plain"


def test_a_relative_path_and_a_link_to_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path / "real", "config.json", "model.safetensors")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    monkeypatch.chdir(tmp_path)
    assert find_model("link").folder == tmp_path / "real"
