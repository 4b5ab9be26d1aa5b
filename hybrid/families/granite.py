"""Granite 3: Llama with four multipliers."""

from dataclasses import replace

from hybrid.families import llama
from hybrid.families.blocks.pre_norm import pre_norm_decoder
from hybrid.families.config.decoder_config import DecoderConfig
from hybrid.families.config.values import ConfigValues
from hybrid.families.family import Family

_MULTIPLIERS = ("embedding_multiplier", "residual_multiplier", "attention_multiplier", "logits_scaling")


def read(values: ConfigValues) -> DecoderConfig:
    """Read the config of a Granite, whose attention has no scale but its multiplier."""
    embedding, residual, attention, logits = (values.number(key, 0.0, 1e6, 1.0) for key in _MULTIPLIERS)
    return replace(
        llama.read(values),
        embedding_multiplier=embedding,
        residual_multiplier=residual,
        attention_scale=attention,
        logits_multiplier=1 / logits,
    )


GRANITE = Family(
    "granite",
    classes=("GraniteForCausalLM", "GraniteModel"),
    read=read,
    build=pre_norm_decoder,
    keys=llama.KEYS.union(_MULTIPLIERS),
)
