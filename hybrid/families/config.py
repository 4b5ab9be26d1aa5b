"""`config.json` of the Llama-like families, checked, as plain data.

Keys and defaults are those of transformers' LlamaConfig, MistralConfig, Qwen2Config and Qwen3Config; version 5
renamed `torch_dtype` to `dtype`, and both are read. `config_keys` says what becomes of every other key.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from hybrid.errors import ModelConfigError, UnsupportedModelError
from hybrid.families.config_keys import check_keys
from hybrid.families.config_values import ConfigValues, is_whole
from hybrid.families.rope_config import RopeScaling, parse_rope
from hybrid.graph.graph import ElementType
from hybrid.shown import show

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")

_DTYPES = {
    "float32": ElementType.FLOAT,
    "float16": ElementType.FLOAT16,
    "bfloat16": ElementType.BFLOAT16,
}
_MAX_TOKEN_ID = 2**24
_MAX_HEAD_DIM = 1024

# What a missing key stands for.
_USUAL = {"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32}
_LLAMA = {**_USUAL, "vocab_size": 32000, "intermediate_size": 11008, "max_position_embeddings": 2048}
_MISTRAL = {**_LLAMA, "intermediate_size": 14336, "num_key_value_heads": 8, "max_position_embeddings": 131072}
_QWEN = {
    **_USUAL,
    "vocab_size": 151936,
    "intermediate_size": 22016,
    "num_key_value_heads": 32,
    "max_position_embeddings": 32768,
}
_SIZES = {"llama": _LLAMA, "mistral": _MISTRAL, "qwen2": _QWEN, "qwen3": _QWEN}
_WINDOW = 4096
_FIRST_SLIDING_LAYER = 28

Activation = Literal["silu", "quick_gelu", "gelu", "gelu_tanh", "relu", "relu2", "sigmoid", "tanh"]
# Names of transformers' ACT2FN. The rest of them are refused.
_ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "quick_gelu": "quick_gelu",
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_accurate": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_python_tanh": "gelu_tanh",
    "relu": "relu",
    "relu2": "relu2",
    "sigmoid": "sigmoid",
    "tanh": "tanh",
}


@dataclass(frozen=True)
class DecoderConfig:
    """The shape of a Llama-like decoder. Sizes are in elements.

    `max_positions` are the tokens that a context may have; `notes` is what the user has to know.
    """

    model_type: str
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    max_positions: int
    activation: Activation
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
    notes: tuple[str, ...] = ()

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
    values = ConfigValues(config, where)
    family = _family(values)
    notes = check_keys(values, family)
    hidden = _size(values, family, "hidden_size", 2**20)
    layers = _size(values, family, "num_hidden_layers", 4096)
    heads = _size(values, family, "num_attention_heads", 2**14)
    kv_heads = values.whole("num_key_value_heads", 2**14, _SIZES[family].get("num_key_value_heads", heads), null=heads)
    if heads % kv_heads:
        raise ModelConfigError(f"{where}: num_key_value_heads is {kv_heads}, must divide num_attention_heads, {heads}")
    head_dim = _head_dim(values, family, hidden, heads)
    vocab = _size(values, family, "vocab_size", _MAX_TOKEN_ID)
    rope = parse_rope(values, head_dim, _size(values, family, "max_position_embeddings", 2**28))
    window, sliding_layers = _sliding(values, family, layers, rope.context_limit)
    attention_bias = family in ("llama", "qwen3") and values.flag("attention_bias")
    ends = ConfigValues(generation_config or {}, "generation_config.json").token_ids("eos_token_id", vocab)
    starts = values.token_ids("bos_token_id", vocab)
    return DecoderConfig(
        model_type=family,
        hidden_size=hidden,
        intermediate_size=_size(values, family, "intermediate_size", 2**22),
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        vocab_size=vocab,
        max_positions=rope.context_limit,
        activation=_activation(values),
        rms_norm_eps=values.number("rms_norm_eps", 0.0, 1.0, 1e-6),
        rope_theta=rope.theta,
        rope_scaling=rope.scaling,
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
        notes=(*notes, *rope.notes),
    )


def _size(values: ConfigValues, family: str, key: str, most: int) -> int:
    return values.whole(key, most, _SIZES[family][key])


def _family(values: ConfigValues) -> str:
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
    quantised = table.get("quantization_config")
    if quantised is not None:
        method = quantised.get("quant_method") if isinstance(quantised, dict) else quantised
        raise UnsupportedModelError(
            f"{where}: weights are quantised (quantization_config has quant_method {show(method)}), not supported from"
            " safetensors; use the original float checkpoint, or an ONNX export with int4 or int8 weights"
        )
    return family


def check_class(config: Mapping[str, Any], family: str, where: str, allow_unused: bool) -> tuple[str, ...]:
    """A note on a class that is not the family's own, if any and `allow_unused`; without it, UnsupportedModelError."""
    strange = unknown_class(config, family)
    if not strange:
        return ()
    if not allow_unused:
        raise UnsupportedModelError(
            f"{where}: architectures is {strange}, not known to be a {family} though model_type says so;"
            f" --allow-unused runs it as one"
        )
    return (f"architectures is {strange}: run as a {family}",)


def unknown_class(config: Mapping[str, Any], family: str) -> str:
    """The class of a config.json that is not the family's own, as text; "" when it is, or none is named.

    A class of another name may compute anything, whatever its tensors are called.
    """
    classes = config.get("architectures")
    if classes is None or classes == []:
        return ""
    names = [str(name).lower() for name in (classes if isinstance(classes, list) else [classes])]
    known = [f"{family}forcausallm", f"{family}model"]
    if family == "mistral":
        known.append("ministralforcausallm")  # Mistral with `layer_types`
    return "" if any(name in known for name in names) else show(classes)


def _activation(values: ConfigValues) -> Activation:
    name = values.table.get("hidden_act", "silu")
    if not isinstance(name, str) or name not in _ACTIVATIONS:
        raise values.unsupported("hidden_act", f"must be one of {', '.join(_ACTIVATIONS)}")
    return _ACTIVATIONS[name]


def _head_dim(values: ConfigValues, family: str, hidden: int, heads: int) -> int:
    if values.table.get("head_dim") is not None:
        head_dim = values.whole("head_dim", _MAX_HEAD_DIM)
    elif family == "qwen3":
        head_dim = 128
    elif hidden % heads:
        raise ModelConfigError(
            f"{values.where}: hidden_size is {hidden}, must be a multiple of num_attention_heads, {heads},"
            " when there is no head_dim"
        )
    else:
        head_dim = hidden // heads
    if head_dim > _MAX_HEAD_DIM:
        raise ModelConfigError(f"{values.where}: heads of {head_dim} elements, must be at most {_MAX_HEAD_DIM}")
    if head_dim % 2:
        raise ModelConfigError(f"{values.where}: head_dim is {head_dim}, must be even (rotary positions take pairs)")
    return head_dim


def _sliding(values: ConfigValues, family: str, layers: int, context_limit: int) -> tuple[int | None, frozenset[int]]:
    """The sliding window and the layers it holds for.

    Mistral slides in every layer, or in those that `layer_types` names. Qwen slides only with `use_sliding_window`,
    in the layers that `layer_types` names, or else in those from `max_window_layers` on. Llama never does.
    """
    kinds = _layer_types(values, layers)
    window = _window(values, family)
    if family == "llama" and window is not None and window < context_limit:
        # transformers cuts the cache of such a Llama, and not its prompt: what it gives depends on how it is asked.
        raise values.unsupported("sliding_window", "which llama models here do not have")
    if kinds is not None and "sliding_attention" in kinds and (window is None or family == "llama"):
        raise values.unsupported("layer_types", "but there is no sliding window for them")
    if window is None or family == "llama":
        return None, frozenset()
    if kinds is not None:
        return window, frozenset(layer for layer, kind in enumerate(kinds) if kind == "sliding_attention")
    return window, frozenset(range(0 if family == "mistral" else _first_sliding_layer(values), layers))


def _window(values: ConfigValues, family: str) -> int | None:
    if family in ("qwen2", "qwen3") and not values.flag("use_sliding_window"):
        return None
    default = None if family == "llama" else _WINDOW
    if values.table.get("sliding_window", default) is None:
        return None
    return values.whole("sliding_window", 2**28, default)


def _layer_types(values: ConfigValues, layers: int) -> list[str] | None:
    """The kind of attention of every layer, when the file says it."""
    kinds = values.table.get("layer_types")
    if kinds is None:
        return None
    if isinstance(kinds, list):
        kinds = ["full_attention" if kind == "attention" else kind for kind in kinds]  # its older name
    known = ("full_attention", "sliding_attention")
    if not isinstance(kinds, list) or len(kinds) != layers or not all(kind in known for kind in kinds):
        raise values.error("layer_types", f"a list of {layers}, each one of {', '.join(known)}")
    return kinds


def _first_sliding_layer(values: ConfigValues) -> int:
    first = values.table.get("max_window_layers", _FIRST_SLIDING_LAYER)
    if not is_whole(first) or first < 0:
        raise values.error("max_window_layers", "a whole number from 0 on")
    return int(first)


def _dtype(values: ConfigValues) -> ElementType:
    key = "dtype" if values.table.get("dtype") is not None else "torch_dtype"
    value = values.table.get(key)
    if value in (None, "auto"):
        return ElementType.BFLOAT16
    name = value.removeprefix("torch.") if isinstance(value, str) else value
    if not isinstance(name, str) or name not in _DTYPES:
        raise values.error(key, f"one of {', '.join(_DTYPES)}")
    return _DTYPES[name]
