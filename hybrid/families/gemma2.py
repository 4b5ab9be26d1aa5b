"""Gemma 2: norms before and after each block, bounds on scores and logits, and windows in every other layer."""

from dataclasses import replace

from hybrid.families.blocks.builder import DecoderBuilder
from hybrid.families.config.activation import read_activation
from hybrid.families.config.decoder_config import DecoderConfig, read_decoder
from hybrid.families.config.values import ConfigValues
from hybrid.families.config.windows import sliding_windows
from hybrid.families.family import Family
from hybrid.families.gemma import as_gemma

_SIZES = {"vocab_size": 256000, "hidden_size": 2304, "intermediate_size": 9216, "max_position_embeddings": 8192}
_COUNTS = {"num_hidden_layers": 26, "num_attention_heads": 8, "num_key_value_heads": 4}
_MOST = 1e6


def read(values: ConfigValues) -> DecoderConfig:
    """Read the config of a Gemma 2. Its first layer slides, its second does not, where there are no `layer_types`."""
    config = read_decoder(values, _SIZES | _COUNTS, head_dim=256)
    activation = read_activation(values, "hidden_activation", "gelu_pytorch_tanh")
    notes = config.notes
    if "hidden_act" in values.table and config.activation != activation:
        notes += ("config.json has hidden_act and hidden_activation: the second goes before, as in transformers",)
    window = values.whole("sliding_window", 2**28, 4096)
    return replace(
        as_gemma(values, config),
        activation=activation,
        windows=sliding_windows(values, config.num_layers, window, lambda layer: layer % 2 == 0),
        attention_scale=values.number("query_pre_attn_scalar", 0.0, _MOST, 256) ** -0.5,
        attention_softcap=_softcap(values, "attn_logit_softcapping", 50.0),
        logits_softcap=_softcap(values, "final_logit_softcapping", 30.0),
        notes=notes,
    )


def build(builder: DecoderBuilder) -> None:
    """Write a decoder whose blocks are between two norms each."""
    residual = builder.embed()
    for layer, name in builder.layers():
        normed = residual.norm(f"{name}.input_layernorm")
        attended = builder.attention(layer, f"{name}.self_attn", normed)
        residual.add(builder.norm(f"{name}.post_attention_layernorm", attended))
        normed = residual.norm(f"{name}.pre_feedforward_layernorm")
        computed = builder.mlp(f"{name}.mlp", normed)
        residual.add(builder.norm(f"{name}.post_feedforward_layernorm", computed))
    builder.head(residual.norm("model.norm", last=True))


def _softcap(values: ConfigValues, key: str, missing: float) -> float | None:
    return values.optional_number(key, 0.0, _MOST) if key in values.table else missing


GEMMA2 = Family(
    "gemma2",
    classes=("Gemma2ForCausalLM", "Gemma2Model"),
    read=read,
    build=build,
    keys=frozenset(
        (
            *("hidden_activation", "attention_bias", "query_pre_attn_scalar"),
            *("attn_logit_softcapping", "final_logit_softcapping"),
        )
    ),
)
