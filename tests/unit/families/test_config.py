"""Reading config.json."""

from typing import Any

import pytest

from hybrid.families.config.decoder_config import DecoderConfig
from hybrid.families.config.rope import Rope
from hybrid.families.registry import check_class, parse_config
from hybrid.graph.graph import ElementType
from tests.hf_models import tiny_config


def parse(model_type: str = "llama", **changes: Any) -> DecoderConfig:
    return parse_config(tiny_config(model_type, **changes), "config.json")


def test_a_plain_llama() -> None:
    assert parse() == DecoderConfig(
        model_type="llama",
        hidden_size=32,
        intermediate_size=48,
        num_heads=4,
        num_kv_heads=2,
        head_dim=8,
        vocab_size=40,
        activation="silu",
        rms_norm_eps=1e-5,
        rope=Rope(pytest.approx((1.0, 0.1, 0.01, 0.001)), 64),
        windows=(None, None),
        attention_scale=8**-0.5,
        tie_word_embeddings=False,
        dtype=ElementType.FLOAT,
        bos_token_id=1,
        eos_token_ids=(2,),
    )


def test_what_the_families_differ_in() -> None:
    assert parse("qwen2").qkv_bias
    assert not parse("qwen2").o_bias
    assert (parse("qwen3").qk_norm, parse("olmo2").qk_norm) == ("each head", "all heads")
    assert parse("qwen3").head_dim == 128
    assert not parse("qwen3").qkv_bias
    assert parse("qwen3", attention_bias=True).o_bias
    assert parse(attention_bias=True, mlp_bias=True).mlp_bias
    assert (parse("seed_oss").qkv_bias, parse("seed_oss").o_bias) == (True, False)
    assert (parse("seed_oss").head_dim, parse("seed_oss", head_dim=None).head_dim) == (128, 8)
    assert parse("granite").attention_scale == 1.0
    granite = parse("granite", logits_scaling=8, attention_multiplier=0.1, mlp_bias=True)
    assert (granite.logits_multiplier, granite.attention_scale, granite.mlp_bias) == (0.125, 0.1, True)
    assert not parse("mistral", attention_bias=False, mlp_bias=False).qkv_bias


def test_defaults_of_old_llama_files() -> None:
    old = parse(num_key_value_heads=..., rope_theta=..., rms_norm_eps=..., torch_dtype=..., hidden_act=...)
    assert (old.num_kv_heads, old.rope, old.rms_norm_eps) == (4, parse().rope, 1e-6)
    assert old.dtype is ElementType.BFLOAT16
    assert parse("mistral", num_key_value_heads=None, head_dim=None).num_kv_heads == 4


@pytest.mark.parametrize(
    ("model_type", "expected"),
    [
        ("llama", (32000, 4096, 11008, 32, 32, 32, 128, 2048)),
        ("mistral", (32000, 4096, 14336, 32, 32, 8, 128, 131072)),
        ("qwen2", (151936, 4096, 22016, 32, 32, 32, 128, 32768)),
        ("seed_oss", (155136, 4096, 27648, 64, 80, 8, 128, 524288)),
        ("olmo2", (50304, 4096, 11008, 32, 32, 32, 128, 2048)),
        ("granite", (32000, 4096, 11008, 32, 32, 32, 128, 2048)),
        ("qwen3", (151936, 4096, 22016, 32, 32, 32, 128, 32768)),
    ],
)
def test_missing_keys_are_what_the_class_has(model_type: str, expected: tuple[int, ...]) -> None:
    config = parse_config({"model_type": model_type}, "config.json")
    sizes = (
        *(config.vocab_size, config.hidden_size, config.intermediate_size, config.num_layers),
        *(config.num_heads, config.num_kv_heads, config.head_dim, config.max_positions),
    )
    assert sizes == expected
    assert (config.rms_norm_eps, config.activation) == (1e-5 if model_type == "olmo2" else 1e-6, "silu")
    assert config.rope.frequencies[-1] == pytest.approx(10000.0 ** (-126 / 128))
    assert not config.tie_word_embeddings
    assert config.windows[31] == (4096 if model_type == "mistral" else None)


def test_names_of_activations() -> None:
    assert parse(hidden_act="swish").activation == "silu"
    assert parse(hidden_act="gelu_pytorch_tanh").activation == "gelu_tanh"


def test_keys_that_nobody_knows_are_told() -> None:
    assert parse(pretraining_tp=2, _private=3, use_cache=True, input_bits=None, flags=[]).notes == ()
    (note,) = parse(input_bits=8, weight_bits=1).notes
    assert "input_bits, weight_bits" in note
    (note,) = parse(rope_scaling={"type": "linear", "factor": 2.0, "beta_fast": 4}).notes
    assert "beta_fast" in note
    (note,) = parse("mistral", sliding_window=9, use_sliding_window=False).notes  # it slides, as in transformers
    assert "use_sliding_window" in note


def test_classes() -> None:
    def told(model_type: str, classes: object) -> tuple[str, ...]:
        return check_class({"model_type": model_type, "architectures": classes}, "config.json", allow_unused=True)

    assert check_class({"model_type": "llama"}, "config.json", allow_unused=False) == ()
    assert told("llama", None) == told("llama", []) == told("llama", "LlamaForCausalLM") == ()
    assert told("llama", ["LLaMAForCausalLM"]) == told("qwen3", ["Qwen3Model"]) == ()
    assert told("mistral", ["MinistralForCausalLM"]) == ()
    assert "Bitnet" in told("llama", ["BitnetForCausalLM"])[0]
    assert "Mistral" in told("llama", ["MistralForCausalLM"])[0]


def test_new_dtype_key_wins() -> None:
    assert parse(dtype="float16").dtype is ElementType.FLOAT16
    assert parse(torch_dtype="torch.bfloat16").dtype is ElementType.BFLOAT16


def test_sliding_windows() -> None:
    assert parse("mistral", sliding_window=9).windows == (9, 9)
    assert parse("mistral", sliding_window=None).windows == (None, None)
    assert parse("mistral").windows == (4096, 4096)
    assert parse("llama", sliding_window=64).windows == (None, None)  # as long as any context
    assert parse("qwen2", sliding_window=9, use_sliding_window=False).windows == (None, None)
    assert parse("qwen2", sliding_window=9).windows == (None, None)
    slides = {"sliding_window": 9, "use_sliding_window": True}
    assert parse("qwen2", use_sliding_window=True, max_window_layers=1).windows == (None, 4096)
    assert parse("qwen2", use_sliding_window=True, sliding_window=None, max_window_layers=0).windows == (None, None)
    assert parse("qwen2", **slides, max_window_layers=1).windows == (None, 9)
    assert parse("qwen2", **slides, max_window_layers=2).windows == (None, None)
    assert parse("qwen2", **slides).windows == (None, None)  # from layer 28 on
    kinds = ["sliding_attention", "full_attention"]
    assert parse("qwen3", **slides, layer_types=kinds, max_window_layers=0).windows == (9, None)
    assert parse("mistral", sliding_window=9, layer_types=kinds).windows == (9, None)
    assert parse("mistral", layer_types=["attention", "sliding_attention"]).windows == (None, 4096)
    assert parse("llama", layer_types=["full_attention"] * 2).windows == (None, None)


def test_end_tokens() -> None:
    assert parse(eos_token_id=[2, 3, 2]).eos_token_ids == (2, 3)
    assert parse(eos_token_id=None).eos_token_ids == ()
    assert parse(eos_token_id=[-1, 40, 39]).eos_token_ids == (39,)
    assert parse(bos_token_id=...).bos_token_id is None
    assert parse_config(tiny_config(), "c", {"eos_token_id": [5, 6]}).eos_token_ids == (5, 6)
    assert parse_config(tiny_config(), "c", {"eos_token_id": None}).eos_token_ids == (2,)
    assert parse_config(tiny_config(), "c", {}).eos_token_ids == (2,)


def test_gemma_1() -> None:
    plain = parse_config({"model_type": "gemma"}, "config.json")
    sizes = plain.vocab_size, plain.hidden_size, plain.intermediate_size, plain.num_layers, plain.head_dim
    assert sizes == (256000, 3072, 24576, 28, 256)
    assert (plain.num_heads, plain.num_kv_heads, plain.max_positions) == (16, 16, 8192)
    assert (plain.activation, plain.tie_word_embeddings, plain.embedding_multiplier) == ("gelu_tanh", True, 3072**0.5)
    assert parse("gemma", hidden_act="gelu", hidden_activation=None).activation == "gelu_tanh"
    assert parse("gemma", hidden_act="gelu", hidden_activation="gelu_pytorch_tanh").notes == ()
    differing = parse("gemma", hidden_act="gelu", hidden_activation="gelu")
    assert (differing.activation, len(differing.notes)) == ("gelu_tanh", 1)
    assert parse("gemma", hidden_act="relu").activation == "relu"


def test_gemma_2() -> None:
    plain = parse_config({"model_type": "gemma2"}, "config.json")
    sizes = plain.vocab_size, plain.hidden_size, plain.intermediate_size, plain.num_layers, plain.head_dim
    assert sizes == (256000, 2304, 9216, 26, 256)
    assert (plain.num_heads, plain.num_kv_heads, plain.max_positions) == (8, 4, 8192)
    assert plain.windows == (4096, None) * 13
    assert (plain.attention_scale, plain.attention_softcap, plain.logits_softcap) == (1 / 16, 50.0, 30.0)
    assert (plain.activation, plain.tie_word_embeddings, plain.embedding_multiplier) == ("gelu_tanh", True, 48.0)
    other = parse(
        "gemma2",
        final_logit_softcapping=None,
        attn_logit_softcapping=7,
        query_pre_attn_scalar=4,
        tie_word_embeddings=False,
        layer_types=["full_attention", "sliding_attention"],
    )
    assert (other.attention_scale, other.attention_softcap, other.logits_softcap) == (0.5, 7.0, None)
    assert (other.windows, other.tie_word_embeddings) == ((None, 16), False)


def test_smollm_3() -> None:
    plain = parse_config({"model_type": "smollm3"}, "config.json")
    sizes = plain.vocab_size, plain.hidden_size, plain.intermediate_size, plain.num_layers, plain.head_dim
    assert sizes == (128256, 2048, 11008, 36, 128)
    assert (plain.num_heads, plain.num_kv_heads, plain.max_positions) == (16, 4, 32768)
    assert (plain.unrotated_layers, plain.windows) == ({*range(3, 36, 4)}, (None,) * 36)
    assert plain.tie_word_embeddings
    assert plain.rope.frequencies[-1] == pytest.approx(2e6 ** (-126 / 128))
    assert parse("smollm3", no_rope_layer_interval=1).unrotated_layers == {0, 1}
    assert parse("smollm3", no_rope_layer_interval=1, no_rope_layers=[1, 0]).unrotated_layers == {1}
    slides = {"sliding_window": 9, "no_rope_layers": [0, 1]}
    assert parse("smollm3", **slides).windows == (None, None)
    assert parse("smollm3", **slides, use_sliding_window=True).windows == (9, None)
    assert parse("smollm3", no_rope_layers=[0, 0], use_sliding_window=True).windows == (None, None)


def test_phi_3() -> None:
    plain = parse_config({"model_type": "phi3"}, "config.json")
    sizes = plain.vocab_size, plain.hidden_size, plain.intermediate_size, plain.num_layers, plain.head_dim
    assert sizes == (32064, 3072, 8192, 32, 96)
    assert (plain.num_heads, plain.num_kv_heads, plain.max_positions) == (32, 32, 4096)
    assert (plain.windows, plain.rms_norm_eps, plain.packed_projections) == ((None,) * 32, 1e-5, True)
    assert parse("phi3", sliding_window=9).windows == (9, 9)
    assert parse("phi3", sliding_window=9, layer_types=["sliding_attention"] * 2).windows == (9, 9)
    assert parse("phi3", partial_rotary_factor=0.5).rope.frequencies == pytest.approx((1.0, 0.01))


@pytest.mark.parametrize("kind", ["longrope", "su", "yarn"])
def test_names_of_the_rotary_scaling_of_phi_3(kind: str) -> None:
    stretched = {"type": kind, "short_factor": [1.0, 2.0, 4.0, 8.0], "long_factor": [9.0] * 4}
    rope = parse("phi3", rope_scaling=stretched, max_position_embeddings=8192).rope
    assert rope.frequencies == pytest.approx((1.0, 0.05, 0.0025, 0.000125))
    assert rope.context_limit == 4096
    assert rope.attention_factor == pytest.approx((1 + 1 / 12) ** 0.5)


def test_arcee() -> None:
    plain = parse_config({"model_type": "arcee"}, "config.json")
    sizes = plain.vocab_size, plain.hidden_size, plain.intermediate_size, plain.num_layers, plain.head_dim
    assert sizes == (32000, 2560, 18432, 32, 80)
    assert (plain.num_heads, plain.num_kv_heads, plain.max_positions) == (32, 32, 4096)
    assert (plain.rms_norm_eps, plain.activation, plain.mlp_gate) == (1e-5, "relu2", False)
    assert parse("arcee", hidden_act="silu").activation == "silu"


def test_ernie_4_5() -> None:
    plain = parse_config({"model_type": "ernie4_5"}, "config.json")
    sizes = plain.vocab_size, plain.hidden_size, plain.intermediate_size, plain.num_layers, plain.head_dim
    assert sizes == (103424, 1024, 3072, 18, 128)
    assert (plain.num_heads, plain.num_kv_heads, plain.max_positions, plain.rms_norm_eps) == (16, 2, 131072, 1e-5)
    assert (plain.rope_interleaved, plain.tie_word_embeddings, plain.qkv_bias) == (True, True, False)
    assert plain.rope.frequencies[-1] == pytest.approx(5e5 ** (-126 / 128))
    biased = parse("ernie4_5", use_bias=True, head_dim=None)
    assert (biased.qkv_bias, biased.o_bias, biased.mlp_bias, biased.head_dim) == (True, True, True, 8)


def test_two_names_of_an_activation() -> None:
    """transformers reads the second of them in Gemma 2."""
    agreeing = parse("gemma2", hidden_act="gelu_pytorch_tanh", hidden_activation="gelu_new")
    assert (agreeing.activation, agreeing.notes) == ("gelu_tanh", ())
    differing = parse("gemma2", hidden_act="silu", hidden_activation="gelu")
    assert differing.activation == "gelu"
    assert ["hidden_act" in note for note in differing.notes] == [True]
