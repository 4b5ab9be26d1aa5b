"""The families that run: what their config.json says, and their graphs."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from hybrid.errors import UnsupportedModelError, UsageError
from hybrid.families.arcee import ARCEE
from hybrid.families.blocks.builder import DecoderBuilder
from hybrid.families.config.decoder_config import DecoderConfig
from hybrid.families.config.keys import check_keys
from hybrid.families.config.values import ConfigValues
from hybrid.families.ernie4_5 import ERNIE4_5
from hybrid.families.family import Family
from hybrid.families.gemma import GEMMA
from hybrid.families.gemma2 import GEMMA2
from hybrid.families.granite import GRANITE
from hybrid.families.llama import LLAMA
from hybrid.families.mistral import MISTRAL
from hybrid.families.olmo2 import OLMO2
from hybrid.families.phi3 import PHI3
from hybrid.families.qwen2 import QWEN2
from hybrid.families.qwen3 import QWEN3
from hybrid.families.seed_oss import SEED_OSS
from hybrid.families.smollm3 import SMOLLM3
from hybrid.families.tensors.tensor_source import ConfigTensors, TensorSource
from hybrid.graph.graph import Graph
from hybrid.shown import show
from offload.spec.units import counted

FAMILIES = {
    family.model_type: family
    for family in (
        LLAMA,
        MISTRAL,
        QWEN2,
        QWEN3,
        GRANITE,
        GEMMA,
        GEMMA2,
        SMOLLM3,
        PHI3,
        OLMO2,
        SEED_OSS,
        ARCEE,
        ERNIE4_5,
    )
}


def parse_config(
    config: Mapping[str, Any], where: str, generation_config: Mapping[str, Any] | None = None
) -> DecoderConfig:
    """Check a config.json and say what decoder it describes.

    `where` names the file in errors. `generation_config`, when given, knows the end tokens better. Raises
    ModelConfigError for values that are missing or cannot be, UnsupportedModelError for what we do not run.
    """
    values = ConfigValues(config, where)
    family = _family(values)
    notes = check_keys(values, family.keys, family.neutral)
    decoder = family.read(values)
    ends = ConfigValues(generation_config or {}, "generation_config.json").token_ids("eos_token_id", decoder.vocab_size)
    return replace(decoder, eos_token_ids=ends or decoder.eos_token_ids, notes=(*notes, *decoder.notes))


def check_class(config: Mapping[str, Any], where: str, allow_unused: bool) -> tuple[str, ...]:
    """Give a note on a class that is not the family's own, if any and `allow_unused`.

    `config` is one that `parse_config` took. Raises UnsupportedModelError without `allow_unused`.
    """
    family = FAMILIES[config["model_type"]]
    classes = config.get("architectures") or []
    names = {str(name).lower() for name in (classes if isinstance(classes, list) else [classes])}
    if not names or names & {name.lower() for name in family.classes}:
        return ()
    strange = f"architectures is {show(classes)}"
    if not allow_unused:
        raise UnsupportedModelError(
            f"{where}: {strange}, not known to be a {family.model_type} though model_type says so;"
            f" --allow-unused runs it as one"
        )
    return (f"{strange}: run as a {family.model_type}",)


def build(config: DecoderConfig, source: TensorSource, context_tokens: int, name: str) -> Graph:
    """Write the decoder as a graph over the tensors of a source.

    In: `input_ids` int64 (1, S); `position_ids` int64 (1, S), only when head_dim is no multiple of 16;
    `seqlens_k` int32 (1,), past + new - 1; `total_sequence_length` int32 (); `past_key_values.{i}.key/.value`
    (1, kv heads, C, D, up to the next multiple of 8). Out: `logits` (1, 1, V) of the last position;
    `present.{i}.key/.value`, the past's buffers with S tokens added. Rotary tables reach to `context_tokens`. Raises
    the errors of `source.take`, UsageError for a context that cannot be.
    """
    if context_tokens < 1:
        raise UsageError(f"context is {counted(context_tokens, 'token')}, must be at least 1")
    builder = DecoderBuilder(config, source, context_tokens)
    FAMILIES[config.model_type].build(builder)
    return builder.write.graph(name)


def tensor_shapes(config: DecoderConfig) -> dict[str, tuple[int, ...]]:
    """Name every tensor that a decoder of this config reads, in order, with its shape; matrices are (out, in)."""
    weights = build(config, ConfigTensors(config.dtype), 1, "").initializers.values()
    return {weight.name: weight.shape for weight in weights if weight.source is None}


def _family(values: ConfigValues) -> Family:
    """Give the family of a config, once nothing stands against running it."""
    name, known = values.table.get("model_type"), ", ".join(FAMILIES)
    if not isinstance(name, str):
        raise values.error("model_type", f"one of {known}")
    if name not in FAMILIES:
        raise UnsupportedModelError(
            f"{values.where}: model_type {show(name)} is not supported from safetensors, only {known};"
            " an ONNX export of it may run"
        )
    quantised = values.table.get("quantization_config")
    if quantised is not None:
        method = quantised.get("quant_method") if isinstance(quantised, dict) else quantised
        raise UnsupportedModelError(
            f"{values.where}: weights are quantised (quantization_config has quant_method {show(method)}), not"
            " supported from safetensors; use the original float checkpoint, or an ONNX export with int4 or int8"
            " weights"
        )
    return FAMILIES[name]
