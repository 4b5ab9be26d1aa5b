"""Seed-OSS: Llama with biases of queries, keys and values, and heads of a size of their own."""

from dataclasses import replace

from hybrid.families.blocks.pre_norm import pre_norm_decoder
from hybrid.families.config.decoder_config import DecoderConfig, read_decoder
from hybrid.families.config.values import ConfigValues
from hybrid.families.config.windows import no_windows
from hybrid.families.family import Family

_SIZES = {"vocab_size": 155136, "intermediate_size": 27648, "max_position_embeddings": 524288}
_COUNTS = {"num_hidden_layers": 64, "num_attention_heads": 80, "num_key_value_heads": 8}
_HEAD_DIM = 128


def read(values: ConfigValues) -> DecoderConfig:
    """Read the config of a Seed-OSS, whose heads share the width where `head_dim` is null."""
    config = read_decoder(values, _SIZES | _COUNTS, head_dim=None if "head_dim" in values.table else _HEAD_DIM)
    return replace(
        config,
        windows=no_windows(values, config.num_layers, config.max_positions),
        qkv_bias=values.flag("attention_bias", missing=True),
        o_bias=values.flag("attention_out_bias"),
        mlp_bias=values.flag("mlp_bias"),
    )


SEED_OSS = Family(
    "seed_oss",
    classes=("SeedOssForCausalLM", "SeedOssModel"),
    read=read,
    build=pre_norm_decoder,
    keys=frozenset(("attention_bias", "attention_out_bias", "mlp_bias")),
)
