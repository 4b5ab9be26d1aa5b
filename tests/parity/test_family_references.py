"""Families with every odd value on, against what transformers makes of the same weights."""

import json
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest

from hybrid.families import open_huggingface
from hybrid.families.tensors.tensor_source import EMBEDDING
from hybrid.source.folder import find_model
from tests.engines import PLACEMENTS, engine_on_simulated, greedy, open_settings
from tests.hf_models import Array, CachedDecoder, random_weights, tiny_config, upcast, write_model

pytest.importorskip("onnxruntime")

STORED = Path(__file__).parents[1] / "data" / "families.json"  # what transformers 5.24 gave; see store()
CONTEXT, GREEDY = 48, 30
GEMMAS = "gemma", "gemma2"
PROMPT = np.random.default_rng(5).integers(0, 40, 14).tolist()  # longer than the windows below
GRANITE = {
    "embedding_multiplier": 3.5,
    "residual_multiplier": 0.3,
    "attention_multiplier": 0.11,
    "logits_scaling": 0.7,
    "attention_bias": True,
    "mlp_bias": True,
}
GEMMA2 = {
    "sliding_window": 6,
    "query_pre_attn_scalar": 11,
    "attn_logit_softcapping": 3.0,
    "final_logit_softcapping": 0.6,
    "attention_bias": True,
}
GEMMA = {"attention_bias": True, "head_dim": 16, "num_key_value_heads": 1}
SMOLLM3 = {"sliding_window": 6, "head_dim": 16, "attention_bias": True, "mlp_bias": True}
PHI3 = {"sliding_window": 6, "num_key_value_heads": 2}
FACTORS = [1.0, 1.1, 1.3, 1.4, 1.6, 1.9, 2.2, 3.0]
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "granite": ("F32", tiny_config("granite", **GRANITE)),
    "granite, tied, heads of 16": (
        "BF16",
        tiny_config(
            "granite",
            **GRANITE | {"embedding_multiplier": 0.4, "residual_multiplier": 1.5},
            head_dim=16,
            tie_word_embeddings=True,
        ),
    ),
    "gemma": ("F32", tiny_config("gemma", **GEMMA, hidden_act="gelu")),
    "gemma, an odd size, a head": (
        "BF16",
        tiny_config(
            "gemma",
            **GEMMA | {"hidden_act": "relu", "head_dim": 12},
            hidden_size=44,
            tie_word_embeddings=False,
        ),
    ),
    "gemma2": ("F32", tiny_config("gemma2", **GEMMA2, head_dim=16)),
    "gemma2, an odd size, layer_types": (
        "F16",
        tiny_config(
            "gemma2",
            **GEMMA2 | {"hidden_activation": "gelu", "attention_bias": False},
            hidden_size=44,
            head_dim=12,
            layer_types=["full_attention", "sliding_attention"],
        ),
    ),
    "gemma2, no bounds, a head": (
        "BF16",
        tiny_config(
            "gemma2",
            **GEMMA2 | {"attn_logit_softcapping": None, "final_logit_softcapping": None},
            head_dim=8,
            tie_word_embeddings=False,
        ),
    ),
    "smollm3": (
        "F32",
        tiny_config("smollm3", **SMOLLM3, rope_theta=..., no_rope_layer_interval=2, use_sliding_window=True),
    ),
    "smollm3, an odd size, layer_types, a head": (
        "F16",
        tiny_config(
            "smollm3",
            **SMOLLM3 | {"head_dim": 12, "attention_bias": False},
            no_rope_layers=[0, 1],
            layer_types=["full_attention", "sliding_attention"],
            use_sliding_window=True,
            tie_word_embeddings=False,
        ),
    ),
    "phi3": ("F32", tiny_config("phi3", **PHI3, head_dim=16)),
    "phi3, longrope of a part": (
        "BF16",
        tiny_config(
            "phi3",
            **PHI3 | {"num_key_value_heads": 4},
            hidden_size=128,
            rope_scaling={"type": "longrope", "short_factor": FACTORS, "long_factor": [2.0] * 8},
            original_max_position_embeddings=50,
            max_position_embeddings=64,
            partial_rotary_factor=0.5,
            tie_word_embeddings=True,
        ),
    ),
    "phi3, an odd part of an odd size": (
        "F16",
        tiny_config("phi3", **PHI3, hidden_size=80, partial_rotary_factor=0.6, hidden_act="gelu"),
    ),
    "olmo2": ("F32", tiny_config("olmo2", head_dim=16, attention_bias=True)),
    "olmo2, an odd size": ("F16", tiny_config("olmo2", hidden_size=80, num_key_value_heads=1, hidden_act="gelu")),
    "seed_oss": ("F32", tiny_config("seed_oss", head_dim=16, attention_out_bias=True, mlp_bias=True)),
    "seed_oss, an odd size": (
        "BF16",
        tiny_config("seed_oss", hidden_size=80, head_dim=None, attention_bias=False, attention_out_bias=True),
    ),
    "arcee": ("F32", tiny_config("arcee", head_dim=16, hidden_act=..., attention_bias=True, mlp_bias=True)),
    "arcee, an odd size": ("F16", tiny_config("arcee", hidden_size=80, hidden_act="gelu_new")),
    "ernie4_5": ("F32", tiny_config("ernie4_5", head_dim=16, use_bias=True, rope_theta=..., tie_word_embeddings=False)),
    "ernie4_5, an odd size": ("BF16", tiny_config("ernie4_5", hidden_size=80, head_dim=None)),
    "smollm3, no positions, no windows": (
        "BF16",
        tiny_config("smollm3", **SMOLLM3 | {"head_dim": 12}, no_rope_layers=[0, 0]),
    ),
}


def write_case(case: str, folder: Path) -> Path:
    """Write the model of a case."""
    dtype, config = CASES[case]
    weights = random_weights(config)
    if config["model_type"] in GEMMAS:  # or every token, times the root of the width, would be followed by itself
        weights[EMBEDDING] *= 0.1
    return write_model(folder, config, weights, dtype)


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def reference(case: str) -> dict[str, Any]:
    stored: dict[str, Any] = json.loads(STORED.read_text())[case]
    return stored


def error(logits: Array, expected: Sequence[float]) -> float:
    """The largest error of a logit, relative to the largest logit."""
    return float(np.abs(logits - expected).max() / np.abs(expected).max())


def test_a_whole_graph_gives_the_logits_of_transformers(
    case: str, reference: Mapping[str, Any], tmp_path: Path
) -> None:
    graph = upcast(open_huggingface(find_model(write_case(case, tmp_path)), CONTEXT).graph)
    run = CachedDecoder(graph, CONTEXT)
    run.step(PROMPT[:9])
    logits, ids = run.step(PROMPT[9:]), []
    assert error(logits, reference["first"]) < 1e-5
    for _ in range(GREEDY):
        ids.append(int(logits.argmax()))
        logits = run.step(ids[-1:])
    assert ids == reference["greedy"]
    assert error(logits, reference["last"]) < 1e-5


def test_an_engine_gives_the_logits_of_transformers(case: str, reference: Mapping[str, Any], tmp_path: Path) -> None:
    """With its Linears and attentions outside onnxruntime."""
    opened = open_settings(write_case(case, tmp_path))
    assert len(opened.attentions) == 2
    on_host = next(placement for placement in PLACEMENTS if placement.name == "none")
    with closing(engine_on_simulated(opened, on_host)) as engine:
        ids, first = greedy(engine, PROMPT, GREEDY, chunk=9)
    assert ids == reference["greedy"]
    assert error(first, reference["first"]) < 1e-5


def theirs(folder: Path, stored_dtype: str) -> dict[str, Any]:
    """Give what transformers makes of a model in float32: logits after the prompt and after its greedy ids."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    ids, logits = list(PROMPT), []
    if model.config.model_type in GEMMAS:  # whose multiplier has the type of the files where the model has it too
        types = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
        embedding = model.model.embed_tokens
        embedding.embed_scale = embedding.embed_scale.to(types[stored_dtype]).float()
    with torch.no_grad():
        for _ in range(GREEDY + 1):
            logits.append(model(torch.tensor([ids]), use_cache=False).logits[0, -1])
            ids.append(int(logits[-1].argmax()))
    first, last = ([float(f"{value:.8g}") for value in logits[step].tolist()] for step in (0, -1))
    return {"greedy": ids[len(PROMPT) : -1], "first": first, "last": last}


def store() -> None:
    """Write what transformers gives; after a change of the cases."""
    lines = []
    for case in CASES:
        with TemporaryDirectory() as folder:
            lines.append(f"{json.dumps(case)}: {json.dumps(theirs(write_case(case, Path(folder)), CASES[case][0]))}")
    STORED.write_text("{\n" + ",\n".join(lines) + "\n}\n")
