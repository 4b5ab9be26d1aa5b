"""The benchmark's random models: files that any safetensors reader accepts, the same for the same seed."""

import json
import math
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.models import ModelWriteError, main, write_folder
from bench.random_weights import DTYPES, Weights
from bench.shapes import SHAPES

TINY = SHAPES["tiny"]
VALUES = 158_016  # 2 x 512 x 64 embedding and head, 2 x 46,208 in the layers, 64 in the last norm


def read(path: Path) -> tuple[dict[str, Any], bytes]:
    """Header without its metadata, and the tensor bytes."""
    raw = path.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    assert length % 8 == 0
    header = json.loads(raw[8 : 8 + length])
    assert header.pop("__metadata__") == {"format": "pt"}
    return header, raw[8 + length :]


def write(out: Path, dtype: str = "fp16", seed: int = 0, **options: Any) -> Path:
    write_folder(out, TINY, Weights(DTYPES[dtype], seed), **options)
    return out


@pytest.mark.parametrize(("dtype", "width"), [("fp16", 2), ("bf16", 2), ("fp32", 4)])
def test_offsets_are_contiguous_and_in_bounds(tmp_path: Path, dtype: str, width: int) -> None:
    header, data = read(write(tmp_path, dtype) / "model.safetensors")
    end = 0
    for entry in header.values():
        begin, stop = entry["data_offsets"]
        assert begin == end
        assert stop - begin == math.prod(entry["shape"]) * width
        assert entry["dtype"] == DTYPES[dtype].safetensors
        end = stop
    assert end == len(data) == VALUES * width


def test_shapes_match_config(tmp_path: Path) -> None:
    header, _ = read(write(tmp_path) / "model.safetensors")
    config = json.loads((tmp_path / "config.json").read_text())
    hidden, inner, head_dim = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    q, kv = config["num_attention_heads"] * head_dim, config["num_key_value_heads"] * head_dim
    expected = {"embed_tokens": [config["vocab_size"], hidden], "norm": [hidden]}
    for layer in range(config["num_hidden_layers"]):
        parts = {
            "input_layernorm": [hidden],
            "self_attn.q_proj": [q, hidden],
            "self_attn.k_proj": [kv, hidden],
            "self_attn.v_proj": [kv, hidden],
            "self_attn.o_proj": [hidden, q],
            "post_attention_layernorm": [hidden],
            "mlp.gate_proj": [inner, hidden],
            "mlp.up_proj": [inner, hidden],
            "mlp.down_proj": [hidden, inner],
        }
        expected |= {f"layers.{layer}.{part}": shape for part, shape in parts.items()}
    expected = {f"model.{name}.weight": shape for name, shape in expected.items()}
    expected["lm_head.weight"] = [config["vocab_size"], hidden]
    assert {name: entry["shape"] for name, entry in header.items()} == expected
    assert config["torch_dtype"] == "float16"
    assert config["tie_word_embeddings"] is False


@pytest.mark.parametrize(("name", "values"), [("tinyllama-1.1b", 1_100_048_384), ("mistral-7b", 7_241_732_096)])
def test_full_size_shapes_have_the_published_parameter_counts(name: str, values: int) -> None:
    assert sum(math.prod(shape) for shape in SHAPES[name].tensors().values()) == values


def test_the_seed_decides_every_value(tmp_path: Path) -> None:
    first, again, other = (
        (write(tmp_path / name, seed=seed) / "model.safetensors").read_bytes()
        for name, seed in (("first", 7), ("again", 7), ("other", 8))
    )
    assert first == again
    assert first != other


def test_values_are_random_small_and_the_same_in_every_dtype() -> None:
    fp32, fp16, bf16 = (Weights(DTYPES[name]).tensor("w", (512, 64)) for name in ("fp32", "fp16", "bf16"))
    assert abs(float(fp32.std()) - 0.02) < 0.001
    assert len(np.unique(fp32[:, 0])) > 500
    np.testing.assert_array_equal(fp16, fp32.astype(np.float16))
    np.testing.assert_allclose((bf16.astype(np.uint32) << 16).view(np.float32), fp32, rtol=2**-8)
    norm = Weights(DTYPES["fp32"]).tensor("n", (64,))
    assert abs(float(norm.mean()) - 1) < 0.02
    assert norm.std() > 0


def test_shards_cover_every_tensor_once(tmp_path: Path) -> None:
    whole, _ = read(write(tmp_path / "whole") / "model.safetensors")
    out = write(tmp_path / "cut", max_shard_bytes=100_000)
    index = json.loads((out / "model.safetensors.index.json").read_text())
    files = sorted(out.glob("*.safetensors"))
    assert len(files) > 1
    found = {name: path.name for path in files for name in read(path)[0]}
    assert found == index["weight_map"]
    assert found.keys() == whole.keys()
    assert index["metadata"]["total_size"] == VALUES * 2 == sum(len(read(path)[1]) for path in files)
    assert not list(out.glob("*.partial"))


def test_a_folder_in_use_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ModelWriteError, match="not empty"):
        write(tmp_path)
    assert main(["--out", str(tmp_path), "--shape", "tiny"]) == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: ")


def test_gguf_holds_the_same_values(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf", reason="the gguf package is not installed")
    assert main(["--out", str(tmp_path), "--shape", "tiny", "--dtype", "fp16", "--gguf"]) == 0
    tensors = {tensor.name: tensor.data for tensor in gguf.GGUFReader(tmp_path / "model.gguf").tensors}
    weights = Weights(DTYPES["fp16"])
    assert len(tensors) == len(TINY.tensors())
    for ours, theirs in (("model.layers.1.mlp.down_proj", "blk.1.ffn_down"), ("model.norm", "output_norm")):
        values = weights.tensor(f"{ours}.weight", TINY.tensors()[f"{ours}.weight"])
        np.testing.assert_array_equal(tensors[f"{theirs}.weight"], values)
    assert tensors["output_norm.weight"].dtype == np.float32
