"""Llama 1 to 3, and the many models that call themselves so."""

from dataclasses import replace

from hybrid.families.blocks.pre_norm import pre_norm_decoder
from hybrid.families.config.decoder_config import DecoderConfig, read_decoder
from hybrid.families.config.values import ConfigValues
from hybrid.families.config.windows import no_windows
from hybrid.families.family import Family

_SIZES = {"vocab_size": 32000, "intermediate_size": 11008, "max_position_embeddings": 2048}
KEYS = frozenset(("attention_bias", "mlp_bias"))


def read(values: ConfigValues) -> DecoderConfig:
    """Read the config of a Llama."""
    config = read_decoder(values, _SIZES)
    windows = no_windows(values, config.num_layers, config.max_positions)
    bias = values.flag("attention_bias")
    return replace(config, windows=windows, qkv_bias=bias, o_bias=bias, mlp_bias=values.flag("mlp_bias"))


LLAMA = Family(
    "llama",
    classes=("LlamaForCausalLM", "LlamaModel"),
    read=read,
    build=pre_norm_decoder,
    keys=KEYS,
)
