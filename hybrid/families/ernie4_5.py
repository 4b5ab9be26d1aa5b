"""ERNIE 4.5, dense: Llama whose rotary positions turn neighbours in a head."""

from dataclasses import replace

from hybrid.families.blocks.pre_norm import pre_norm_decoder
from hybrid.families.config.decoder_config import DecoderConfig, read_decoder
from hybrid.families.config.values import ConfigValues
from hybrid.families.config.windows import no_windows
from hybrid.families.family import Family

_SIZES = {"vocab_size": 103424, "hidden_size": 1024, "intermediate_size": 3072, "max_position_embeddings": 131072}
_COUNTS = {"num_hidden_layers": 18, "num_attention_heads": 16, "num_key_value_heads": 2}
_HEAD_DIM = 128


def read(values: ConfigValues) -> DecoderConfig:
    """Read the config of an ERNIE 4.5, whose heads share the width where `head_dim` is null."""
    head_dim = None if "head_dim" in values.table else _HEAD_DIM
    config = read_decoder(values, _SIZES | _COUNTS, head_dim=head_dim, rope_theta=5e5, rms_norm_eps=1e-5)
    bias = values.flag("use_bias")
    return replace(
        config,
        windows=no_windows(values, config.num_layers, config.max_positions),
        tie_word_embeddings=values.flag("tie_word_embeddings", missing=True),
        rope_interleaved=True,
        qkv_bias=bias,
        o_bias=bias,
        mlp_bias=bias,
    )


ERNIE4_5 = Family(
    "ernie4_5",
    classes=("Ernie4_5ForCausalLM", "Ernie4_5Model"),
    read=read,
    build=pre_norm_decoder,
    keys=frozenset(("use_bias",)),
)
