"""Graphs built from Hugging Face folders, run whole in onnxruntime, against a plain float64 forward pass."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from hybrid.families import open_huggingface
from hybrid.graph.graph import TensorInfo
from hybrid.source.folder import find_model
from tests.hf_models import CachedDecoder, random_weights, rounded, tiny_config, upcast, write_model

pytest.importorskip("onnxruntime")

Array = npt.NDArray[Any]
REAL_MODELS = Path(__file__).parents[2] / ".." / "shared" / "models"

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
LONGROPE = {"rope_type": "longrope", "short_factor": [1.0, 2.0, 3.0, 4.0], "long_factor": [5.0, 6.0, 7.0, 8.0]}
CASES: dict[str, dict[str, Any]] = {
    "llama, heads of 8": tiny_config(),
    "llama, heads of 16, tied": tiny_config(hidden_size=64, tie_word_embeddings=True),
    "llama, head_dim of its own": tiny_config(head_dim=16),
    "llama, head_dim 24": tiny_config(head_dim=24),
    "llama, heads of 20": tiny_config(head_dim=20),
    "llama, heads of 4, biases": tiny_config(head_dim=4, attention_bias=True),
    "llama, swish": tiny_config(hidden_act="swish"),
    "llama, gelu": tiny_config(hidden_act="gelu_pytorch_tanh"),
    "llama, squared relu": tiny_config(hidden_act="relu2"),
    "llama, longrope": tiny_config(rope_scaling=LONGROPE),
    "llama, no grouping": tiny_config(num_key_value_heads=4),
    "llama, biases": tiny_config(attention_bias=True, mlp_bias=True, head_dim=16),
    "llama, llama3 rope": tiny_config(head_dim=16, rope_scaling=LLAMA3_ROPE),
    "llama, linear rope": tiny_config(rope_scaling={"type": "linear", "factor": 4.0}),
    "llama, version 5 keys": tiny_config(
        rope_theta=..., torch_dtype=..., dtype="float32", rope_parameters={**LLAMA3_ROPE, "rope_theta": 500.0}
    ),
    "mistral, window 5": tiny_config("mistral", head_dim=16, sliding_window=5),
    "mistral, window 5, heads of 8": tiny_config("mistral", sliding_window=5),
    "mistral, window 1": tiny_config("mistral", head_dim=16, sliding_window=1),
    "mistral, layer_types": tiny_config(
        "mistral", head_dim=16, sliding_window=5, layer_types=["full_attention", "sliding_attention"]
    ),
    "mistral, heads of 20, window 5": tiny_config("mistral", head_dim=20, sliding_window=5),
    "mistral, no window": tiny_config("mistral", sliding_window=None),
    "qwen2": tiny_config("qwen2", tie_word_embeddings=True, use_sliding_window=False, sliding_window=4),
    "qwen2, later layers slide": tiny_config(
        "qwen2", head_dim=16, use_sliding_window=True, sliding_window=4, max_window_layers=1
    ),
    "qwen3": tiny_config("qwen3", head_dim=16, rope_theta=1e6),
    "qwen3, heads of 8, biases": tiny_config("qwen3", head_dim=8, attention_bias=True),
}


def reference_logits(config: Mapping[str, Any], weights: Mapping[str, Array], ids: Sequence[int]) -> Array:
    """Logits (tokens, V), every position at once, all in float64 and straight from the papers."""
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    count, positions = len(ids), np.arange(len(ids))

    def norm(x: Array, name: str) -> Array:
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + config["rms_norm_eps"]) * weights[f"{name}.weight"]

    def linear(x: Array, name: str) -> Array:
        return x @ weights[f"{name}.weight"].T + weights.get(f"{name}.bias", 0.0)

    angles = positions[:, None] * reference_frequencies(config, head_dim)
    turn = np.exp(1j * angles)[:, None, :]  # (T, 1, D/2)

    def rotate(x: Array) -> Array:  # (T, heads, D): element i pairs with element i + D/2
        half = head_dim // 2
        turned = (x[..., :half] + 1j * x[..., half:]) * turn
        return np.concatenate([turned.real, turned.imag], -1)

    x = weights["model.embed_tokens.weight"][list(ids)]
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}"
        normed = norm(x, f"{prefix}.input_layernorm")
        q = linear(normed, f"{prefix}.self_attn.q_proj").reshape(count, heads, head_dim)
        k = linear(normed, f"{prefix}.self_attn.k_proj").reshape(count, kv_heads, head_dim)
        v = linear(normed, f"{prefix}.self_attn.v_proj").reshape(count, kv_heads, head_dim)
        if config["model_type"] == "qwen3":
            q, k = norm(q, f"{prefix}.self_attn.q_norm"), norm(k, f"{prefix}.self_attn.k_norm")
        q, k = rotate(q), np.repeat(rotate(k), heads // kv_heads, 1)
        v = np.repeat(v, heads // kv_heads, 1)
        scores = np.einsum("qhd,khd->hqk", q, k) / np.sqrt(head_dim)
        behind = positions[:, None] - positions[None, :]
        window = reference_window(config, layer)
        scores = np.where((behind >= 0) & (behind < window), scores, -np.inf)
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        attended = np.einsum("hqk,khd->qhd", scores / scores.sum(-1, keepdims=True), v)
        x = x + linear(attended.reshape(count, -1), f"{prefix}.self_attn.o_proj")
        normed = norm(x, f"{prefix}.post_attention_layernorm")
        gate = linear(normed, f"{prefix}.mlp.gate_proj")
        active = reference_activation(config, gate)
        x = x + linear(active * linear(normed, f"{prefix}.mlp.up_proj"), f"{prefix}.mlp.down_proj")
    head = "model.embed_tokens" if config.get("tie_word_embeddings") else "lm_head"
    return norm(x, "model.norm") @ weights[f"{head}.weight"].T


def reference_activation(config: Mapping[str, Any], x: Array) -> Array:
    """The gate's activation by the name that the config has for it."""
    name = config["hidden_act"]
    if name in ("silu", "swish"):
        return x / (1 + np.exp(-x))
    if name == "relu2":
        return np.maximum(x, 0) ** 2
    assert name == "gelu_pytorch_tanh"
    return x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def reference_frequencies(config: Mapping[str, Any], head_dim: int) -> Array:
    """Radians a position, (D/2,), one pair after the other."""
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    theta = rope.get("rope_theta", config.get("rope_theta"))
    kind = rope.get("rope_type", rope.get("type"))
    frequencies = []
    for pair in range(head_dim // 2):
        frequency = 1.0 / theta ** (2 * pair / head_dim)
        if kind == "longrope":
            frequency /= rope["short_factor"][pair]
        elif kind == "linear":
            frequency /= rope["factor"]
        elif kind == "llama3":
            wavelength, original = 2 * np.pi / frequency, rope["original_max_position_embeddings"]
            low, high = rope["low_freq_factor"], rope["high_freq_factor"]
            if wavelength > original / low:
                frequency /= rope["factor"]
            elif wavelength >= original / high:
                smooth = (original / wavelength - low) / (high - low)
                frequency = (1 - smooth) * frequency / rope["factor"] + smooth * frequency
        frequencies.append(frequency)
    return np.array(frequencies)


def reference_window(config: Mapping[str, Any], layer: int) -> float:
    """Tokens a query of this layer sees, itself included."""
    window = config.get("sliding_window")
    if config.get("layer_types", ["sliding_attention"] * (layer + 1))[layer] == "full_attention":
        window = None
    if config["model_type"].startswith("qwen"):
        slides = config.get("use_sliding_window") and layer >= config.get("max_window_layers", 28)
        window = window if slides else None
    return np.inf if window is None else window


def compare(folder: Path, config: Mapping[str, Any], weights: Mapping[str, Array]) -> float:
    """The largest error of a logit, relative to the largest logit: 11 tokens, three single ones, then 4."""
    ids = np.random.default_rng(1).integers(0, config["vocab_size"], 18).tolist()
    expected = reference_logits(config, weights, ids)
    decoder = open_huggingface(find_model(folder), 64)
    run = CachedDecoder(upcast(decoder.graph), capacity=24)
    errors, done = [], 0
    for chunk in (11, 1, 1, 1, 4):
        logits = run.step(ids[done : done + chunk])
        done += chunk
        errors.append(np.abs(logits - expected[done - 1]).max())
    return float(max(errors) / np.abs(expected).max())


@pytest.mark.parametrize("case", CASES)
def test_every_family_agrees_with_float64(case: str, tmp_path: Path) -> None:
    config = CASES[case]
    weights = random_weights(config)
    write_model(tmp_path, config, weights)
    error = compare(tmp_path, config, {name: weight.astype(np.float64) for name, weight in weights.items()})
    assert error < 1e-5, f"{case}: {error}"


@pytest.mark.parametrize("head_dim", [8, 16])
@pytest.mark.parametrize(("dtype", "norm_dtype"), [("F16", "F16"), ("BF16", "BF16"), ("BF16", "F32")])
@pytest.mark.parametrize("model_type", ["qwen2", "qwen3"])
def test_half_weights_are_used_as_stored(
    model_type: str, dtype: str, norm_dtype: str, head_dim: int, tmp_path: Path
) -> None:
    config = tiny_config(model_type, head_dim=head_dim)
    weights = random_weights(config)
    write_model(tmp_path, config, weights, dtype, shards=3, norm_dtype=norm_dtype)
    exact = {n: rounded(w, dtype if w.ndim == 2 else norm_dtype) for n, w in weights.items()}
    assert compare(tmp_path, config, exact) < 1e-5


@pytest.mark.parametrize(
    ("model_type", "head_dim"),
    [
        ("qwen3", 8),
        ("qwen3", 16),
        ("qwen3", 20),
        ("granite", 16),
        ("gemma2", 16),
        ("phi3", 16),
        ("phi3", 20),
        ("olmo2", 16),
    ],
)
def test_types_and_shapes_of_every_tensor_are_what_onnxruntime_makes(
    model_type: str, head_dim: int, tmp_path: Path
) -> None:
    odd: dict[str, Any] = {"attention_bias": model_type != "phi3"}
    if model_type == "granite":
        odd |= {"residual_multiplier": 0.5, "logits_scaling": 2.0}
    config = tiny_config(model_type, head_dim=head_dim, tie_word_embeddings=False, **odd)
    write_model(tmp_path, config, random_weights(config), "F16", norm_dtype="BF16")
    graph = upcast(open_huggingface(find_model(tmp_path), 64).graph)
    tensors = [name for node in graph.nodes for name in node.outputs if name]
    watched = [TensorInfo(n, graph.types[n], graph.shapes[n]) for n in tensors]
    run = CachedDecoder(replace(graph, outputs=tuple(watched)), capacity=12)
    values = run.run([1, 2, 3, 4, 5], [info.name for info in watched])
    bound = {"S": 5, "C": 12}
    for info, value in zip(watched, values, strict=True):
        assert value.shape == tuple(bound.get(dim, dim) for dim in info.shape), info.name
        assert value.dtype == info.element_type.storage_dtype, info.name


@pytest.mark.parametrize("name", ["stories260K", "babyllama-tok105-1M"])
def test_trained_models_agree_with_their_golden_tokens(name: str) -> None:
    folder = REAL_MODELS / name
    if not folder.is_dir():
        pytest.skip(f"no trained test model {name}")
    golden = json.loads((folder / "golden.json").read_text())
    decoder = open_huggingface(find_model(folder), 256)
    run = CachedDecoder(decoder.graph, capacity=256)
    logits = run.step(golden["prompt_ids"])
    assert np.abs(logits - np.array(golden["first_step_logits"])).max() < 5e-5
    produced = []
    for _ in golden["greedy_ids"]:
        produced.append(int(logits.argmax()))
        logits = run.step([produced[-1]])
    assert produced == golden["greedy_ids"]
