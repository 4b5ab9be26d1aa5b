"""Reading config.json."""

from typing import Any

import pytest

from hybrid.graph.graph import ElementType
from hybrid.model.hf_config import DecoderConfig, RopeScaling, parse_config
from tests.hf_models import tiny_config

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def parse(model_type: str = "llama", **changes: Any) -> DecoderConfig:
    return parse_config(tiny_config(model_type, **changes), "config.json")


def test_a_plain_llama() -> None:
    assert parse() == DecoderConfig(
        model_type="llama",
        hidden_size=32,
        intermediate_size=48,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=8,
        vocab_size=40,
        max_positions=64,
        rms_norm_eps=1e-5,
        rope_theta=10000.0,
        rope_scaling=RopeScaling(),
        sliding_window=None,
        sliding_layers=frozenset(),
        tie_word_embeddings=False,
        qkv_bias=False,
        o_bias=False,
        mlp_bias=False,
        qk_norm=False,
        dtype=ElementType.FLOAT,
        bos_token_id=1,
        eos_token_ids=(2,),
    )


def test_what_the_families_differ_in() -> None:
    assert parse("qwen2").qkv_bias
    assert not parse("qwen2").o_bias
    assert parse("qwen3").qk_norm
    assert parse("qwen3").head_dim == 128
    assert not parse("qwen3").qkv_bias
    assert parse("qwen3", attention_bias=True).o_bias
    assert parse(attention_bias=True, mlp_bias=True).mlp_bias
    assert not parse("mistral", attention_bias=True, mlp_bias=True).qkv_bias


def test_defaults_of_old_llama_files() -> None:
    old = parse(num_key_value_heads=..., rope_theta=..., rms_norm_eps=..., torch_dtype=..., hidden_act=...)
    assert (old.num_kv_heads, old.rope_theta, old.rms_norm_eps) == (4, 10000.0, 1e-6)
    assert old.dtype is ElementType.BFLOAT16
    assert parse("mistral", num_key_value_heads=None, head_dim=None).num_kv_heads == 4


@pytest.mark.parametrize(
    "changes",
    [
        {"rope_scaling": LLAMA3, "rope_theta": 500000},
        {"rope_scaling": {**LLAMA3, "type": "llama3"}, "rope_theta": 500000.0},
        {"rope_theta": ..., "rope_parameters": {**LLAMA3, "rope_theta": 500000.0}},
    ],
)
def test_llama3_rope_old_and_new(changes: dict[str, Any]) -> None:
    config = parse(**changes)
    assert config.rope_scaling == RopeScaling("llama3", 8.0, 1.0, 4.0, 8192)
    assert config.rope_theta == 500000.0


def test_other_ropes() -> None:
    assert parse(rope_scaling=None).rope_scaling == RopeScaling()
    assert parse(rope_scaling={"rope_type": "default"}).rope_scaling == RopeScaling()
    assert parse(rope_scaling={"type": "linear", "factor": 2}).rope_scaling == RopeScaling("linear", 2.0)


def test_new_dtype_key_wins() -> None:
    assert parse(dtype="float16").dtype is ElementType.FLOAT16
    assert parse(torch_dtype="torch.bfloat16").dtype is ElementType.BFLOAT16


def windows(config: DecoderConfig) -> list[int | None]:
    return [config.window_of(layer) for layer in range(config.num_layers)]


def test_sliding_windows() -> None:
    assert windows(parse("mistral", sliding_window=9)) == [9, 9]
    assert windows(parse("mistral", sliding_window=None)) == [None, None]
    assert windows(parse("mistral")) == [None, None]
    assert windows(parse("llama", sliding_window=9)) == [None, None]
    assert windows(parse("qwen2", sliding_window=9, use_sliding_window=False)) == [None, None]
    assert windows(parse("qwen2", sliding_window=9)) == [None, None]
    slides = {"sliding_window": 9, "use_sliding_window": True}
    assert windows(parse("qwen2", **slides, max_window_layers=1)) == [None, 9]
    assert windows(parse("qwen2", **slides, max_window_layers=2)) == [None, None]
    assert windows(parse("qwen2", **slides)) == [None, None]  # from layer 28 on
    kinds = ["sliding_attention", "full_attention"]
    assert windows(parse("qwen3", **slides, layer_types=kinds, max_window_layers=0)) == [9, None]


def test_end_tokens() -> None:
    assert parse(eos_token_id=[2, 3, 2]).eos_token_ids == (2, 3)
    assert parse(eos_token_id=None).eos_token_ids == ()
    assert parse(eos_token_id=[-1, 40, 39]).eos_token_ids == (39,)
    assert parse(bos_token_id=...).bos_token_id is None
    assert parse_config(tiny_config(), "c", {"eos_token_id": [5, 6]}).eos_token_ids == (5, 6)
    assert parse_config(tiny_config(), "c", {"eos_token_id": None}).eos_token_ids == (2,)
    assert parse_config(tiny_config(), "c", {}).eos_token_ids == (2,)
