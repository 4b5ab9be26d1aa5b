"""SmolLM 3: Llama with layers whose attention knows no positions, which are those that may slide."""

from dataclasses import replace

from hybrid.families.blocks.pre_norm import pre_norm_decoder
from hybrid.families.config.decoder_config import DecoderConfig, read_decoder
from hybrid.families.config.values import ConfigValues
from hybrid.families.config.windows import optional_window, sliding_windows
from hybrid.families.family import Family

_SIZES = {"vocab_size": 128256, "hidden_size": 2048, "intermediate_size": 11008, "max_position_embeddings": 32768}
_COUNTS = {"num_hidden_layers": 36, "num_attention_heads": 16, "num_key_value_heads": 4}


def read(values: ConfigValues) -> DecoderConfig:
    """Read the config of a SmolLM 3. There are windows only with `use_sliding_window`."""
    config = read_decoder(values, _SIZES | _COUNTS, rope_theta=2e6)
    unrotated = _unrotated_layers(values, config.num_layers)
    window = optional_window(values, missing=None) if values.flag("use_sliding_window") else None
    bias = values.flag("attention_bias")
    return replace(
        config,
        windows=sliding_windows(values, config.num_layers, window, unrotated.__contains__),
        unrotated_layers=unrotated,
        tie_word_embeddings=values.flag("tie_word_embeddings", missing=True),
        qkv_bias=bias,
        o_bias=bias,
        mlp_bias=values.flag("mlp_bias"),
    )


def _unrotated_layers(values: ConfigValues, layers: int) -> frozenset[int]:
    """Read the layers that have 0 in `no_rope_layers`, or else every `no_rope_layer_interval`-th."""
    rotated = values.table.get("no_rope_layers")
    if rotated is None:
        interval = values.whole("no_rope_layer_interval", 2**28, 4)
        return frozenset(range(interval - 1, layers, interval))
    if not isinstance(rotated, list) or len(rotated) != layers or not all(value in (0, 1) for value in rotated):
        raise values.error("no_rope_layers", f"a list of {layers}, each one 1 (with positions) or 0 (without)")
    return frozenset(layer for layer, value in enumerate(rotated) if not value)


SMOLLM3 = Family(
    "smollm3",
    classes=("SmolLM3ForCausalLM", "SmolLM3Model"),
    read=read,
    build=pre_norm_decoder,
    keys=frozenset(
        ("attention_bias", "mlp_bias", "use_sliding_window", "no_rope_layers", "no_rope_layer_interval"),
    ),
)
