"""Attention outside its island against the whole graph in one onnxruntime session, and a cache in fp16."""

from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hybrid.engine.engine import Engine
from hybrid.loading.open_engine import open_engine
from hybrid.loading.opened_model import OpenedModel, open_for_run
from hybrid.loading.settings import DEMO_MODEL, RunSettings
from tests.engines import (
    PLACEMENTS,
    SHARED_MODELS,
    engine_on_cpu,
    engine_on_simulated,
    greedy,
    open_settings,
    read_golden,
)
from tests.hf_models import random_weights, tiny_config, write_model
from tests.parity.test_golden_tokens import DEMO_GOLDEN

_IDS = [1, 30, 7, 12, 9, 35, 20, 33, 21, 8, 39, 14, 2, 17, 5, 28, 11, 3, 26, 19]
CONFIGS: dict[str, dict[str, Any]] = {
    "heads of 16": tiny_config(head_dim=16),
    "heads of 8, rotated before": tiny_config(),
    "one key head": tiny_config(head_dim=32, num_key_value_heads=1),
    "window 5": tiny_config("mistral", head_dim=16, sliding_window=5),
    "biases, some layers slide": tiny_config(
        "qwen2", head_dim=16, use_sliding_window=True, sliding_window=4, max_window_layers=1
    ),
    "normed heads": tiny_config("qwen3", head_dim=16),
    "scores bent, windows, norms on both sides": tiny_config(
        "gemma2", head_dim=16, sliding_window=5, attn_logit_softcapping=2.0, final_logit_softcapping=3.0
    ),
    "packed projections, heads turned in part": tiny_config(
        "phi3", head_dim=32, partial_rotary_factor=0.5, sliding_window=5
    ),
    "norms after blocks, and of all heads": tiny_config("olmo2", head_dim=16),
    "neighbours turned": tiny_config("ernie4_5", head_dim=16),
    "multipliers": tiny_config("granite", head_dim=16, attention_multiplier=0.1, residual_multiplier=0.3),
}


@pytest.fixture(params=CONFIGS)
def model(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    config = CONFIGS[request.param]
    return write_model(tmp_path, config, random_weights(config))


def outside(opened: OpenedModel, placement: str = "none") -> Engine:
    """Every Linear and every attention outside its island."""
    return engine_on_simulated(opened, next(known for known in PLACEMENTS if known.name == placement))


@pytest.mark.parametrize("placement", ["none", "half of the columns"])
def test_it_agrees_with_the_whole_graph(model: Path, placement: str) -> None:
    opened = open_settings(model)
    assert len(opened.attentions) == 2
    with closing(engine_on_cpu(opened, whole=True)) as whole, closing(outside(opened, placement)) as cut:
        for ids in (_IDS[:8], _IDS[8:9], _IDS[9:10], _IDS[10:]):
            expected = whole.prefill(ids)
            assert np.abs(cut.prefill(ids) - expected).max() < 1e-5 * np.abs(expected).max()
        for engine in (whole, cut):
            engine.trim(6)
        expected = whole.prefill(_IDS[:7])
        assert np.abs(cut.prefill(_IDS[:7]) - expected).max() < 1e-5 * np.abs(expected).max()


def test_a_cache_in_fp16_is_near_the_whole_graph(model: Path) -> None:
    """Keys and values are rounded by 2**-11, and errors of a layer pass through the next."""
    opened = open_for_run(RunSettings(model, kv_dtype="fp16"))
    with closing(engine_on_cpu(open_settings(model), whole=True)) as whole, closing(outside(opened)) as cut:
        for ids in (_IDS[:8], _IDS[8:9], _IDS[9:]):
            expected, logits = whole.prefill(ids), cut.prefill(ids)
            error = np.abs(logits - expected).max() / np.abs(expected).max()
            assert 0 < error < 0.01


@pytest.mark.parametrize("kv_dtype", ["fp16", "fp32"])
def test_the_demo_model_says_the_same_from_either_cache(kv_dtype: str) -> None:
    golden = read_golden(DEMO_GOLDEN)
    with open_engine(RunSettings(DEMO_MODEL, cuda="0", kv_dtype=kv_dtype, threads=2)) as engine:
        ids, _ = greedy(engine, golden.prompt_ids, 20)
    assert ids == golden.greedy_ids[:20]


def test_a_model_in_fp32_may_have_an_fp16_cache(tmp_path: Path) -> None:
    config = CONFIGS["heads of 16"]
    folder = write_model(tmp_path, config, random_weights(config))
    with (
        open_engine(RunSettings(folder, cuda="0", threads=2)) as plain,
        open_engine(RunSettings(folder, cuda="0", kv_dtype="fp16", threads=2)) as half,
    ):
        expected = plain.prefill(_IDS)
        error = np.abs(half.prefill(_IDS) - expected).max() / np.abs(expected).max()
        assert 0 < error < 0.01


@pytest.mark.parametrize(
    ("export", "bound"),
    [
        ("stories260K/genai-cpu-fp32", 0.005),
        ("stories260K/genai-cpu-fp32-noshare", 0.005),
        ("stories260K/genai-cuda-fp16", 0.005),
        ("babyllama-tok105-1M/genai-cpu-fp32", 0.005),
        ("babyllama-tok105-1M/genai-cpu-int4", 0.03),  # rounds its activations to int8 as well
    ],
)
def test_exports_attend_outside_with_either_cache(export: str, bound: float) -> None:
    """Their heads are packed; their lengths come out of an island."""
    folder = SHARED_MODELS / "exports" / export
    if not folder.is_dir():
        pytest.skip(f"{folder} is absent")
    logits = []
    for kv_dtype in ("fp32", "fp16"):
        opened = open_for_run(RunSettings(folder, kv_dtype=kv_dtype))
        assert opened.attentions
        with closing(outside(opened)) as engine:
            engine.prefill(_IDS[:9])
            logits.append(engine.decode(_IDS[9]))
    error = np.abs(logits[0] - logits[1]).max() / np.abs(logits[0]).max()
    assert 0 < error < bound


def test_heads_that_onnxruntime_cannot_turn_attend_outside() -> None:
    """Its GroupQueryAttention refuses to rotate heads of 8."""
    folder = SHARED_MODELS / "exports" / "stories260K" / "genai-cpu-fp32"
    if not folder.is_dir():
        pytest.skip(f"{folder} is absent")
    golden = read_golden(SHARED_MODELS / "stories260K" / "golden.json")
    with open_engine(RunSettings(folder, cuda="0", threads=2)) as engine:
        ids, _ = greedy(engine, golden.prompt_ids, 20, 8)
    assert ids == golden.greedy_ids[:20]
