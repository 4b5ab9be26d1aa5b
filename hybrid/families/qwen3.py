"""Qwen 3: norms of queries and keys, and heads of a size of their own."""

from dataclasses import replace

from hybrid.families import qwen2
from hybrid.families.blocks.pre_norm import pre_norm_decoder
from hybrid.families.config.decoder_config import DecoderConfig, read_decoder
from hybrid.families.config.values import ConfigValues
from hybrid.families.family import Family

_HEAD_DIM = 128


def read(values: ConfigValues) -> DecoderConfig:
    """Read the config of a Qwen3."""
    config = read_decoder(values, qwen2.SIZES, head_dim=_HEAD_DIM)
    bias = values.flag("attention_bias")
    windows = qwen2.read_windows(values, config.num_layers)
    return replace(config, windows=windows, qkv_bias=bias, o_bias=bias, qk_norm="each head")


QWEN3 = Family(
    "qwen3",
    classes=("Qwen3ForCausalLM", "Qwen3Model"),
    read=read,
    build=pre_norm_decoder,
    keys=qwen2.KEYS | {"attention_bias"},
    # It has these norms built in; the tensors say whether the file does.
    neutral=dict.fromkeys(("qk_norm", "use_qk_norm", "qk_layernorm", "use_qk_layernorm"), (None, False, True)),
)
