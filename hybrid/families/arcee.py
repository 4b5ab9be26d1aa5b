"""Arcee: Llama with MLPs that have no gate."""

from dataclasses import replace

from hybrid.families import llama
from hybrid.families.blocks.pre_norm import pre_norm_decoder
from hybrid.families.config.activation import read_activation
from hybrid.families.config.decoder_config import DecoderConfig, read_decoder
from hybrid.families.config.values import ConfigValues
from hybrid.families.config.windows import no_windows
from hybrid.families.family import Family

_SIZES = {"vocab_size": 32000, "hidden_size": 2560, "intermediate_size": 18432, "max_position_embeddings": 4096}


def read(values: ConfigValues) -> DecoderConfig:
    """Read the config of an Arcee."""
    config = read_decoder(values, _SIZES, rms_norm_eps=1e-5)
    bias = values.flag("attention_bias")
    return replace(
        config,
        activation=read_activation(values, missing="relu2"),
        windows=no_windows(values, config.num_layers, config.max_positions),
        qkv_bias=bias,
        o_bias=bias,
        mlp_bias=values.flag("mlp_bias"),
        mlp_gate=False,
    )


ARCEE = Family(
    "arcee",
    classes=("ArceeForCausalLM", "ArceeModel"),
    read=read,
    build=pre_norm_decoder,
    keys=llama.KEYS,
)
