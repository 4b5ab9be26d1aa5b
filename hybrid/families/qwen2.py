"""Qwen 2 and 2.5: Llama with biases of queries, keys and values."""

from dataclasses import replace

from hybrid.families.blocks.pre_norm import pre_norm_decoder
from hybrid.families.config.decoder_config import DecoderConfig, read_decoder
from hybrid.families.config.values import ConfigValues, is_whole
from hybrid.families.config.windows import Windows, optional_window, sliding_windows
from hybrid.families.family import Family

SIZES = {
    "vocab_size": 151936,
    "intermediate_size": 22016,
    "max_position_embeddings": 32768,
    "num_key_value_heads": 32,
}
KEYS = frozenset(("use_sliding_window", "max_window_layers"))
_FIRST_SLIDING_LAYER = 28


def read(values: ConfigValues) -> DecoderConfig:
    """Read the config of a Qwen2."""
    config = read_decoder(values, SIZES)
    return replace(config, windows=read_windows(values, config.num_layers), qkv_bias=True)


def read_windows(values: ConfigValues, layers: int) -> Windows:
    """Read windows, which there are only with `use_sliding_window`.

    They are those of the layers that `layer_types` names, or else of those from `max_window_layers` on.
    """
    window = optional_window(values) if values.flag("use_sliding_window") else None
    return sliding_windows(values, layers, window, lambda layer: layer >= _first_sliding_layer(values))


def _first_sliding_layer(values: ConfigValues) -> int:
    first = values.table.get("max_window_layers", _FIRST_SLIDING_LAYER)
    if not is_whole(first) or first < 0:
        raise values.error("max_window_layers", "a whole number from 0 on")
    return int(first)


QWEN2 = Family(
    "qwen2",
    classes=("Qwen2ForCausalLM", "Qwen2Model"),
    read=read,
    build=pre_norm_decoder,
    keys=KEYS,
    # It has these biases built in; the tensors say whether the file does.
    neutral=dict.fromkeys(("attention_bias", "qkv_bias", "add_qkv_bias"), (None, False, True)),
)
