"""Gemma 1: Llama with embeddings times the root of the width, and norms whose weights are counted from one."""

from dataclasses import replace

from hybrid.families.blocks.pre_norm import pre_norm_decoder
from hybrid.families.config.activation import read_activation
from hybrid.families.config.decoder_config import DecoderConfig, read_decoder
from hybrid.families.config.values import ConfigValues
from hybrid.families.config.windows import no_windows
from hybrid.families.family import Family

_SIZES = {"vocab_size": 256000, "hidden_size": 3072, "intermediate_size": 24576, "max_position_embeddings": 8192}
_COUNTS = {"num_hidden_layers": 28, "num_attention_heads": 16, "num_key_value_heads": 16}
_TANH = "gelu_pytorch_tanh"


def read(values: ConfigValues) -> DecoderConfig:
    """Read the config of a Gemma 1."""
    config = read_decoder(values, _SIZES | _COUNTS, head_dim=256)
    # The first files say gelu where they mean its approximation, which transformers knows.
    legacy = values.table.get("hidden_act") == "gelu"
    activation = "gelu_tanh" if legacy else read_activation(values, missing=_TANH)
    notes = config.notes
    if values.table.get("hidden_activation") is not None and read_activation(values, "hidden_activation") != activation:
        notes += ("config.json has hidden_act and hidden_activation: the first goes before, as in transformers",)
    windows = no_windows(values, config.num_layers, config.max_positions)
    return replace(as_gemma(values, config), activation=activation, windows=windows, notes=notes)


def as_gemma(values: ConfigValues, config: DecoderConfig) -> DecoderConfig:
    """Set what Gemmas of all generations have: a tied head, counted norms and scaled embeddings."""
    bias = values.flag("attention_bias")
    return replace(
        config,
        tie_word_embeddings=values.flag("tie_word_embeddings", missing=True),
        qkv_bias=bias,
        o_bias=bias,
        norm_offset=1.0,
        embedding_multiplier=config.hidden_size**0.5,
        embedding_multiplier_as_stored=True,  # in training, and in transformers
    )


GEMMA = Family(
    "gemma",
    classes=("GemmaForCausalLM", "GemmaModel"),
    read=read,
    build=pre_norm_decoder,
    keys=frozenset(("hidden_activation", "attention_bias")),
)
