"""OLMo 2: norms after each block and none before, and norms of all queries and all keys."""

from dataclasses import replace

from hybrid.families.blocks.builder import DecoderBuilder
from hybrid.families.config.decoder_config import DecoderConfig, read_decoder
from hybrid.families.config.values import ConfigValues
from hybrid.families.config.windows import no_windows
from hybrid.families.family import Family

_SIZES = {"vocab_size": 50304, "intermediate_size": 11008, "max_position_embeddings": 2048}


def read(values: ConfigValues) -> DecoderConfig:
    """Read the config of an OLMo 2."""
    config = read_decoder(values, _SIZES, rms_norm_eps=1e-5)
    windows = no_windows(values, config.num_layers, config.max_positions)
    bias = values.flag("attention_bias")
    return replace(config, windows=windows, qkv_bias=bias, o_bias=bias, qk_norm="all heads")


def build(builder: DecoderBuilder) -> None:
    """Write a decoder whose blocks read the sum as it is."""
    residual = builder.embed()
    for layer, name in builder.layers():
        attended = builder.attention(layer, f"{name}.self_attn", residual.total(f"{name}.input"))
        residual.add(builder.norm(f"{name}.post_attention_layernorm", attended))
        computed = builder.mlp(f"{name}.mlp", residual.total(f"{name}.attended"))
        residual.add(builder.norm(f"{name}.post_feedforward_layernorm", computed))
    builder.head(residual.norm("model.norm", last=True))


OLMO2 = Family(
    "olmo2",
    classes=("Olmo2ForCausalLM", "Olmo2Model"),
    read=read,
    build=build,
    keys=frozenset(("attention_bias",)),
)
