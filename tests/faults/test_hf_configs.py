"""Values in config.json that cannot be, or are not supported: one line, of the right kind, with key and value."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hybrid.errors import ModelConfigError, ModelError, UnsupportedModelError
from hybrid.families.registry import FAMILIES, parse_config
from tests.hf_models import tiny_config
from tests.messages import one_line

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
@pytest.mark.parametrize("value", [-1, 0, "32", 32.0, float("nan"), True, [32], {}, 10**30])
def test_sizes_that_cannot_be(key: str, value: Any) -> None:
    config = tiny_config("mistral", **{key: value})
    one_line(ModelConfigError, lambda: parse_config(config, "some/config.json"), "some/config.json", key, repr(value))


LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
QWEN_SLIDES = {"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 4}
BAD_VALUES: list[tuple[dict[str, Any], str]] = [
    ({"model_type": "granite", "residual_multiplier": 0}, "residual_multiplier is 0"),
    ({"model_type": "granite", "logits_scaling": "8"}, "logits_scaling is '8'"),
    ({"model_type": "gemma2", "sliding_window": None}, "sliding_window is None"),
    ({"model_type": "gemma2", "query_pre_attn_scalar": 0}, "query_pre_attn_scalar is 0"),
    ({"model_type": "gemma2", "attn_logit_softcapping": -50}, "attn_logit_softcapping is -50"),
    ({"model_type": "smollm3", "no_rope_layers": [0]}, "no_rope_layers is [0]"),
    ({"model_type": "smollm3", "no_rope_layers": [0, "1"]}, "no_rope_layers is [0, '1']"),
    ({"model_type": "smollm3", "no_rope_layer_interval": 0}, "no_rope_layer_interval is 0"),
    ({"model_type": "phi3", "partial_rotary_factor": 0}, "partial_rotary_factor is 0"),
    ({"model_type": "phi3", "partial_rotary_factor": 0.4}, "partial_rotary_factor is 0.4"),  # 3 of 8 elements
    ({"model_type": "phi3", "partial_rotary_factor": 1.5}, "partial_rotary_factor is 1.5"),
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
    ({"rope_theta": 1e-320, "head_dim": 128}, "not finite"),
    ({"rope_scaling": {"type": "linear", "factor": 1e-320}}, "not finite"),
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
    ({"rope_scaling": {"type": "yarn"}}, "factor is missing"),
    ({"rope_scaling": {"type": "yarn", "factor": 2.0}, "rope_theta": 1}, "rope_theta is 1"),
    ({"rope_scaling": {"type": "yarn", "factor": 2.0, "beta_fast": -1}}, "beta_fast is -1"),
    ({"rope_scaling": {"type": "yarn", "factor": 2.0, "truncate": 1}}, "truncate is 1"),
    ({"rope_scaling": {"type": "longrope", "short_factor": [1.0] * 4}}, "long_factor is missing"),
    ({"rope_scaling": {"type": "longrope", "short_factor": [1.0] * 3}}, "short_factor is [1.0, 1.0, 1.0]"),
    ({"rope_scaling": {"type": "longrope", "short_factor": [1.0, 0.0, 1.0, 1.0]}}, "short_factor"),
    ({"rope_parameters": {"rope_theta": None}}, "rope_theta is None"),
    ({"rope_parameters": {"rope_theta": 10**4000}}, "rope_theta is 1000"),
    ({"original_max_position_embeddings": None, "rope_scaling": LLAMA3}, "original_max_position_embeddings is None"),
    ({"head_dim": 2048}, "head_dim is 2048"),
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
        for name in ("mixtral", "qwen3_moe", "gpt2", "phi", "gemma3_text", "falcon")
    ),
    ({"hidden_act": "mish"}, "hidden_act is 'mish'"),
    ({"hidden_act": None}, "hidden_act is None"),
    ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
    ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "partial_rotary_factor is 0.5"),
    ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}, "partial_rotary_factor": 0.5}, "partial_rotary_factor"),
    *(({"rope_scaling": {"rope_type": name, "factor": 2.0}}, f"'{name}'") for name in ("su", "mrope", "axial")),
    ({"rope_scaling": {"type": "default", "mrope_section": [1, 1, 2]}}, "mrope_section is [1, 1, 2]"),
    ({"sliding_window": 9}, "sliding_window is 9"),
    ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types"),
    ({"model_type": "mistral", "sliding_window": None, "layer_types": ["sliding_attention"] * 2}, "layer_types"),
    ({"model_type": "qwen2", "layer_types": ["sliding_attention"] * 2}, "layer_types"),
    ({"model_type": "phi3", "sliding_window": 9, "layer_types": ["full_attention"] * 2}, "layer_types"),
    ({"model_type": "phi3", "rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling"),
    ({"model_type": "smollm3", "sliding_window": 9, "layer_types": ["sliding_attention"] * 2}, "layer_types"),
    ({"model_type": "mistral", "attention_bias": True}, "attention_bias is True"),
    ({"model_type": "qwen2", "mlp_bias": True}, "mlp_bias is True"),
    ({"is_causal": False}, "is_causal is False"),
    ({"is_causal": None}, "is_causal is None"),
    ({"residual_multiplier": 0.22}, "residual_multiplier is 0.22"),
    ({"attn_logit_softcapping": 50.0}, "attn_logit_softcapping is 50.0"),
    ({"no_rope_layers": [1, 0]}, "no_rope_layers is [1, 0]"),
    ({"per_layer_config": {"0": {"num_attention_heads": 2}}}, "per_layer_config"),
    ({"headwise_attn_output_gate": True}, "headwise_attn_output_gate is True"),
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
    assert changes.get("model_type", "llama") in FAMILIES or ", ".join(FAMILIES) in message


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=300, deadline=None)
@given(
    family=st.sampled_from(sorted(FAMILIES)),
    key=st.sampled_from(
        [
            *tiny_config(),
            "head_dim",
            "rope_scaling",
            "rope_parameters",
            "sliding_window",
            "dtype",
            "layer_types",
            "is_causal",
        ]
    ),
    value=json_values,
)
def test_no_value_does_anything_but_parse_or_be_refused(family: str, key: str, value: Any) -> None:
    refusal = ""
    try:
        parse_config(tiny_config(family) | {"use_sliding_window": True, key: value}, "config.json")
    except ModelError as error:
        refusal = str(error)
    assert refusal.isprintable()
