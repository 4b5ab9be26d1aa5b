"""Mistral and Ministral: Llama with sliding windows."""

from dataclasses import replace

from hybrid.families.blocks.pre_norm import pre_norm_decoder
from hybrid.families.config.decoder_config import DecoderConfig, read_decoder
from hybrid.families.config.values import ConfigValues
from hybrid.families.config.windows import optional_window, sliding_windows
from hybrid.families.family import Family

_SIZES = {
    "vocab_size": 32000,
    "intermediate_size": 14336,
    "max_position_embeddings": 131072,
    "num_key_value_heads": 8,
}


def read(values: ConfigValues) -> DecoderConfig:
    """Read the config of a Mistral, which slides in every layer, or in those that `layer_types` names."""
    config = read_decoder(values, _SIZES)
    windows = sliding_windows(values, config.num_layers, optional_window(values), lambda layer: True)
    return replace(config, windows=windows)


MISTRAL = Family(
    "mistral",
    classes=("MistralForCausalLM", "MistralModel", "MinistralForCausalLM"),  # the last one with `layer_types`
    read=read,
    build=pre_norm_decoder,
)
