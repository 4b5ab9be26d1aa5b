"""Phi 3 and 4: Llama whose projections before attention are one Linear, and those of gate and up another."""

from dataclasses import replace

from hybrid.families.blocks.pre_norm import pre_norm_decoder
from hybrid.families.config.decoder_config import DecoderConfig, read_decoder
from hybrid.families.config.values import ConfigValues
from hybrid.families.config.windows import Windows, optional_window, sliding_windows
from hybrid.families.family import Family

_SIZES = {"vocab_size": 32064, "hidden_size": 3072, "intermediate_size": 8192, "max_position_embeddings": 4096}
_ORIGINAL_POSITIONS = 4096
_LONGROPE = ("longrope", "su", "yarn")  # the last two in the first files


def read(values: ConfigValues) -> DecoderConfig:
    """Read the config of a Phi 3."""
    config = read_decoder(_with_longrope(values), _SIZES, rms_norm_eps=1e-5, rotates_part=True)
    return replace(config, windows=_windows(values, config.num_layers), packed_projections=True)


def _with_longrope(values: ConfigValues) -> ConfigValues:
    """Give the config with the one name that its rotary scaling has now, and the missing original context."""
    table = {"original_max_position_embeddings": _ORIGINAL_POSITIONS, **values.table}
    for key in ("rope_scaling", "rope_parameters"):
        settings = table.get(key)
        if not isinstance(settings, dict):
            continue
        kind = settings.get("rope_type", settings.get("type", "default"))
        if kind == "default":
            continue
        if kind not in _LONGROPE:
            raise values.unsupported(key, f"must be of a type that phi3 models have: {', '.join(_LONGROPE)}")
        table[key] = {**settings, "rope_type": "longrope"}
    return ConfigValues(table, values.where)


def _windows(values: ConfigValues, layers: int) -> Windows:
    """Read windows, which all layers have, or none."""
    windows = sliding_windows(values, layers, optional_window(values, missing=None), lambda layer: True)
    if None in windows and values.table.get("sliding_window") is not None:
        raise values.unsupported("layer_types", "but in phi3 models every layer slides when there is a sliding_window")
    return windows


PHI3 = Family(
    "phi3",
    classes=("Phi3ForCausalLM", "Phi3Model"),
    read=read,
    build=pre_norm_decoder,
)
