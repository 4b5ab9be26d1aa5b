"""`config.json` of the Llama-like families, checked, as plain data.

Keys and defaults are those of transformers' LlamaConfig, MistralConfig, Qwen2Config and Qwen3Config. Version
5 renamed `torch_dtype` to `dtype` and moved `rope_theta` and `rope_scaling` into `rope_parameters`; both
forms are read.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from hybrid.errors import ModelConfigError, UnsupportedModelError
from hybrid.graph.graph import ElementType
from hybrid.model.source import show

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")

_DTYPES = {
    "float32": ElementType.FLOAT,
    "float16": ElementType.FLOAT16,
    "bfloat16": ElementType.BFLOAT16,
}
_REQUIRED: Any = object()
_MAX_TOKEN_ID = 2**24


@dataclass(frozen=True)
class RopeScaling:
    """How rotary frequencies are stretched. The last three are for "llama3" only."""

    kind: Literal["none", "linear", "llama3"] = "none"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_positions: int = 0


@dataclass(frozen=True)
class DecoderConfig:
    """What a Llama-like decoder looks like. Sizes are in elements; `max_positions` in tokens."""

    model_type: str
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    max_positions: int
    rms_norm_eps: float
    rope_theta: float
    rope_scaling: RopeScaling
    sliding_window: int | None  # tokens a query sees, itself included
    sliding_layers: frozenset[int]  # the layers that the window holds for
    tie_word_embeddings: bool
    qkv_bias: bool
    o_bias: bool
    mlp_bias: bool
    qk_norm: bool
    dtype: ElementType  # of the weights, when there is nothing but the config
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]

    def window_of(self, layer: int) -> int | None:
        """The sliding window of a layer, or None when it sees everything before it."""
        return self.sliding_window if layer in self.sliding_layers else None


def parse_config(
    config: Mapping[str, Any], where: str, generation_config: Mapping[str, Any] | None = None
) -> DecoderConfig:
    """Check a config.json and say what decoder it describes.

    `where` names the file in errors. `generation_config`, when given, knows the end tokens better. Raises
    ModelConfigError for values that are missing or cannot be, UnsupportedModelError for what we do not run.
    """
    values = _Values(config, where)
    family = _family(values)
    hidden = values.whole("hidden_size", 2**20)
    layers = values.whole("num_hidden_layers", 4096)
    heads = values.whole("num_attention_heads", 2**14)
    # Only the first Llama models left it out.
    kv_heads = values.whole("num_key_value_heads", 2**14, heads if family == "llama" else _REQUIRED, null=heads)
    if heads % kv_heads:
        raise ModelConfigError(f"{where}: num_key_value_heads is {kv_heads}, must divide num_attention_heads, {heads}")
    head_dim = _head_dim(values, family, hidden, heads)
    max_positions = values.whole("max_position_embeddings", 2**28)
    vocab = values.whole("vocab_size", _MAX_TOKEN_ID)
    rope = _Values(_rope_table(values), where)
    window, sliding_layers = _sliding(values, family, layers)
    attention_bias = family in ("llama", "qwen3") and values.flag("attention_bias")
    ends = _Values(generation_config or {}, "generation_config.json").token_ids("eos_token_id", vocab)
    starts = values.token_ids("bos_token_id", vocab)
    return DecoderConfig(
        model_type=family,
        hidden_size=hidden,
        intermediate_size=values.whole("intermediate_size", 2**22),
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        vocab_size=vocab,
        max_positions=max_positions,
        rms_norm_eps=values.number("rms_norm_eps", 0.0, 1.0, 1e-6),
        rope_theta=rope.number("rope_theta", 0.0, 1e15, 10000.0),
        rope_scaling=_rope_scaling(rope),
        sliding_window=window,
        sliding_layers=sliding_layers,
        tie_word_embeddings=values.flag("tie_word_embeddings"),
        qkv_bias=attention_bias or family == "qwen2",
        o_bias=attention_bias,
        mlp_bias=family == "llama" and values.flag("mlp_bias"),
        qk_norm=family == "qwen3",
        dtype=_dtype(values),
        bos_token_id=starts[0] if starts else None,
        eos_token_ids=ends or values.token_ids("eos_token_id", vocab),
    )


@dataclass(frozen=True)
class _Values:
    """The keys of one JSON object, read with their bounds."""

    table: Mapping[str, Any]
    where: str

    def error(self, key: str, must: str) -> ModelConfigError:
        if key not in self.table:
            return ModelConfigError(f"{self.where}: {key} is missing, must be {must}")
        return ModelConfigError(f"{self.where}: {key} is {show(self.table[key])}, must be {must}")

    def whole(self, key: str, most: int, default: Any = _REQUIRED, null: int | None = None) -> int:
        """A number from 1 to `most`; `default` when the key is missing, `null` when it is null."""
        value = self.table.get(key, default)
        if value is None and null is not None:
            return null
        if not _is_int(value) or not 1 <= value <= most:
            raise self.error(key, f"a whole number from 1 to {most}")
        return int(value)

    def number(self, key: str, above: float, most: float, default: Any = _REQUIRED) -> float:
        """A number greater than `above`, at most `most`."""
        value = self.table.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not above < value <= most:
            raise self.error(key, f"a number above {above:g}, at most {most:g}")
        return float(value)

    def flag(self, key: str) -> bool:
        """true or false; false when missing or null."""
        value = self.table.get(key)
        if value is not None and not isinstance(value, bool):
            raise self.error(key, "true or false")
        return bool(value)

    def token_ids(self, key: str, vocab: int) -> tuple[int, ...]:
        """One id, several or none. Ids outside the vocabulary (placeholders in some files) are left out."""
        value = self.table.get(key)
        ids = [] if value is None else value if isinstance(value, list) else [value]
        if not all(_is_int(item) for item in ids):
            raise self.error(key, "a token id or a list of them")
        return tuple(dict.fromkeys(item for item in ids if 0 <= item < vocab))


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _family(values: _Values) -> str:
    """The model_type, once nothing stands against running it."""
    table, where = values.table, values.where
    family = table.get("model_type")
    if not isinstance(family, str):
        raise values.error("model_type", f"one of {', '.join(FAMILIES)}")
    if family not in FAMILIES:
        raise UnsupportedModelError(
            f"{where}: model_type {show(family)} is not supported from safetensors, only"
            f" {', '.join(FAMILIES)}; an ONNX export of it may run"
        )
    classes = table.get("architectures")
    names = [str(name) for name in classes] if isinstance(classes, list) else []
    if names and not any(name.endswith("ForCausalLM") for name in names):
        raise UnsupportedModelError(f"{where}: architectures is {show(classes)}, needs a ...ForCausalLM")
    quantised = table.get("quantization_config")
    if quantised is not None:
        method = quantised.get("quant_method") if isinstance(quantised, dict) else quantised
        raise UnsupportedModelError(
            f"{where}: weights are quantised (quant_method {show(method)}), not supported from safetensors;"
            " use the original float checkpoint, or an ONNX export with int4 or int8 weights"
        )
    activation = table.get("hidden_act", "silu")
    if activation != "silu":
        raise UnsupportedModelError(f"{where}: hidden_act is {show(activation)}, must be 'silu'")
    partial = table.get("partial_rotary_factor")
    if partial not in (None, 1, 1.0):
        raise UnsupportedModelError(f"{where}: partial_rotary_factor is {show(partial)}, only 1.0 is supported")
    return family


def _head_dim(values: _Values, family: str, hidden: int, heads: int) -> int:
    if values.table.get("head_dim") is not None:
        head_dim = values.whole("head_dim", 2**14)
    elif family == "qwen3":
        head_dim = 128
    elif hidden % heads:
        raise ModelConfigError(
            f"{values.where}: hidden_size is {hidden}, must be a multiple of num_attention_heads, {heads},"
            " when there is no head_dim"
        )
    else:
        head_dim = hidden // heads
    if head_dim % 2:
        raise ModelConfigError(f"{values.where}: head_dim is {head_dim}, must be even (rotary positions take pairs)")
    return head_dim


def _rope_table(values: _Values) -> dict[str, Any]:
    """The rotary settings in the flat form of `rope_parameters`, wherever they were."""
    merged: dict[str, Any] = {}
    if "rope_theta" in values.table:
        merged["rope_theta"] = values.table["rope_theta"]
    for key in ("rope_scaling", "rope_parameters"):
        table = values.table.get(key)
        if table is None:
            continue
        if not isinstance(table, dict):
            raise values.error(key, "an object or null")
        if any(isinstance(value, dict) for value in table.values()):
            raise UnsupportedModelError(f"{values.where}: {key} differs by layer type, which is not supported")
        merged |= table
    if "original_max_position_embeddings" in values.table:
        merged.setdefault("original_max_position_embeddings", values.table["original_max_position_embeddings"])
    return merged


def _rope_scaling(rope: _Values) -> RopeScaling:
    kind = rope.table.get("rope_type", rope.table.get("type", "default"))
    if kind in (None, "default"):
        return RopeScaling()
    if kind not in ("linear", "llama3"):
        raise UnsupportedModelError(
            f"{rope.where}: rope_type {show(kind)} is not supported (only default, linear and llama3)"
        )
    factor = rope.number("factor", 0.0, 1e6)
    if kind == "linear":
        return RopeScaling("linear", factor)
    low = rope.number("low_freq_factor", 0.0, 1e6)
    high = rope.number("high_freq_factor", 0.0, 1e6)
    if low >= high:
        raise ModelConfigError(f"{rope.where}: low_freq_factor is {low:g}, must be below high_freq_factor, {high:g}")
    original = rope.whole("original_max_position_embeddings", 2**28)
    return RopeScaling("llama3", factor, low, high, original)


def _sliding(values: _Values, family: str, layers: int) -> tuple[int | None, frozenset[int]]:
    """The sliding window and the layers it holds for.

    Mistral slides in every layer. Qwen slides only with `use_sliding_window`, in the layers that
    `layer_types` names, or else in those from `max_window_layers` on. Llama never does.
    """
    nowhere: frozenset[int] = frozenset()
    if family == "llama" or values.table.get("sliding_window") is None:
        return None, nowhere
    if family != "mistral" and not values.flag("use_sliding_window"):
        return None, nowhere
    window = values.whole("sliding_window", 2**28)
    if family == "mistral":
        return window, frozenset(range(layers))
    kinds = values.table.get("layer_types")
    if kinds is None:
        first = values.table.get("max_window_layers", 28)
        if not _is_int(first) or first < 0:
            raise values.error("max_window_layers", "a whole number from 0 on")
        return window, frozenset(range(first, layers))
    known = ("full_attention", "sliding_attention")
    if not isinstance(kinds, list) or len(kinds) != layers or not all(kind in known for kind in kinds):
        raise values.error("layer_types", f"a list of {layers}, each one of {', '.join(known)}")
    return window, frozenset(layer for layer, kind in enumerate(kinds) if kind == "sliding_attention")


def _dtype(values: _Values) -> ElementType:
    key = "dtype" if values.table.get("dtype") is not None else "torch_dtype"
    value = values.table.get(key)
    if value in (None, "auto"):
        return ElementType.BFLOAT16
    name = value.removeprefix("torch.") if isinstance(value, str) else value
    if not isinstance(name, str) or name not in _DTYPES:
        raise values.error(key, f"one of {', '.join(_DTYPES)}")
    return _DTYPES[name]
