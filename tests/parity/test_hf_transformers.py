"""Opened folders against transformers, in float32: the same logits, whatever form their config.json has.

Needs transformers and torch; tests/parity/test_hf_builder.py has worked-out references that need neither.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from hybrid.families import open_huggingface
from hybrid.source.folder import find_model
from tests.hf_models import CachedDecoder, random_weights, tiny_config, write_model

pytest.importorskip("onnxruntime")
pytest.importorskip("torch")
pytest.importorskip("transformers")

pytestmark = pytest.mark.filterwarnings("default")  # the reference's own

SHORT, LONG = {"rope_theta": 1e4, "rope_type": "default"}, 48  # longer than the original contexts below
SLIDES = {"use_sliding_window": True, "sliding_window": 5}
ALTERNATING = ["full_attention", "sliding_attention"]


def yarn(**changes: Any) -> dict[str, Any]:
    """Settings of YaRN for a context of 16 tokens stretched to 64."""
    return {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, **changes}


def longrope(pairs: int, **changes: Any) -> dict[str, Any]:
    """Settings of LongRoPE whose context is never left."""
    factors = {"short_factor": [1.0 + 0.1 * i for i in range(pairs)], "long_factor": [2.0 + i for i in range(pairs)]}
    return {"rope_type": "longrope", **factors, **changes}


CASES: dict[str, dict[str, Any]] = {
    "yarn": tiny_config("qwen2", rope_scaling=yarn()),
    "yarn beside rope_parameters": tiny_config(
        "qwen2", rope_theta=..., rope_scaling=yarn(), rope_parameters={"rope_type": "default", "rope_theta": 500.0}
    ),
    "yarn in rope_parameters": tiny_config(rope_theta=..., rope_parameters=yarn(rope_theta=500.0)),
    "yarn, original positions at the top": tiny_config(
        rope_parameters=yarn(original_max_position_embeddings=32), original_max_position_embeddings=8
    ),
    "yarn, no original positions": tiny_config(rope_parameters={"rope_type": "yarn", "factor": 2.0}),
    "yarn, factor null": tiny_config(rope_parameters=yarn(factor=None)),
    "yarn, a ramp of its own": tiny_config(head_dim=16, rope_scaling=yarn(beta_fast=2, beta_slow=0.25)),
    "yarn, not truncated": tiny_config("qwen3", head_dim=16, rope_scaling=yarn(truncate=False)),
    "yarn, attention factor": tiny_config(rope_scaling=yarn(attention_factor=0.8)),
    "yarn, mscale": tiny_config(head_dim=16, rope_scaling=yarn(mscale=1.0, mscale_all_dim=0.5)),
    "yarn, mscale 0": tiny_config(head_dim=16, rope_scaling=yarn(mscale=0.0, mscale_all_dim=0.5)),
    "linear": tiny_config("mistral", rope_scaling={"type": "linear", "factor": 4.0}),
    "llama3": tiny_config(
        head_dim=16,
        rope_parameters={
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 16,
            "rope_theta": 5e5,
        },
        rope_theta=1.0,
    ),
    "dynamic": tiny_config(rope_scaling={"type": "dynamic", "factor": 4.0}),
    "longrope": tiny_config(rope_scaling=longrope(4, factor=4.0)),
    "longrope, attention factor": tiny_config("mistral", rope_scaling=longrope(4, attention_factor=1.2)),
    "proportional": tiny_config(
        head_dim=16, rope_parameters={"rope_type": "proportional", "partial_rotary_factor": 0.4, "factor": 2.0}
    ),
    "an empty rope_scaling": tiny_config(rope_theta=..., rope_scaling={}, rope_parameters={"rope_theta": 300.0}),
    "theta in the table before theta beside it": tiny_config(
        rope_theta=7.0, rope_parameters={"rope_type": "default", "rope_theta": 300.0}
    ),
    "no theta": tiny_config("qwen3", head_dim=16, rope_theta=...),
    "mistral, layer_types": tiny_config("mistral", head_dim=8, sliding_window=5, layer_types=ALTERNATING),
    "mistral, layer_types null": tiny_config("mistral", head_dim=8, sliding_window=5, layer_types=None),
    "mistral, no window": tiny_config("mistral", sliding_window=None, use_sliding_window=False),
    "mistral, a window in spite of use_sliding_window": tiny_config(
        "mistral", sliding_window=5, use_sliding_window=False
    ),
    "qwen2, layer_types": tiny_config("qwen2", **SLIDES, layer_types=ALTERNATING, max_window_layers=0),
    "qwen3, older names of layer_types": tiny_config(
        "qwen3", head_dim=8, **SLIDES, layer_types=["attention", "sliding_attention"]
    ),
    "qwen2, max_window_layers": tiny_config("qwen2", **SLIDES, max_window_layers=1),
    "qwen2, window null": tiny_config("qwen2", use_sliding_window=True, sliding_window=None),
    **{f"head_dim {size}": tiny_config(head_dim=size) for size in (4, 12, 20, 100)},
    "head_dim 20, q and k norms": tiny_config("qwen3", head_dim=20, num_key_value_heads=4, rope_scaling=yarn()),
    "head_dim 20, window": tiny_config("mistral", head_dim=20, sliding_window=7),
    **{
        name: tiny_config(hidden_act=name)
        for name in (
            *("swish", "quick_gelu", "gelu", "gelu_python", "gelu_new", "gelu_fast", "gelu_accurate"),
            *("gelu_pytorch_tanh", "gelu_python_tanh", "relu", "relu2", "sigmoid", "tanh"),
        )
    },
    "keys that say nothing": tiny_config(pretraining_tp=4, use_cache=False, attention_dropout=0.5, is_decoder=False),
    "defaults": tiny_config(rms_norm_eps=..., rope_theta=..., hidden_act=..., num_key_value_heads=...),
}


def reference(folder: Path, ids: list[int]) -> npt.NDArray[np.float32]:
    """Logits (tokens, V) of transformers, all positions at once."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    with torch.no_grad():
        logits = model(torch.tensor([ids]), use_cache=False).logits[0]
    return np.asarray(logits.numpy(), np.float32)


def error(folder: Path, config: Mapping[str, Any], length: int = LONG) -> float:
    """The largest error of a logit after a chunk of most tokens, after each of three, and after the rest."""
    ids = np.random.default_rng(1).integers(0, config["vocab_size"], length).tolist()
    expected = reference(folder, ids)
    run = CachedDecoder(open_huggingface(find_model(folder), 64).graph, capacity=64)
    worst, done = 0.0, 0
    for chunk in (length - 8, 1, 1, 1, 5):
        logits = run.step(ids[done : done + chunk])
        done += chunk
        worst = max(worst, float(np.abs(logits - expected[done - 1]).max()))
    return worst / float(np.abs(expected).max())


@pytest.mark.parametrize("case", CASES)
def test_a_config_gives_the_logits_of_transformers(case: str, tmp_path: Path) -> None:
    config = CASES[case]
    write_model(tmp_path, config, random_weights(config))
    assert error(tmp_path, config) < 2e-5
