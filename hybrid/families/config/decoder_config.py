"""The shape of a decoder, read from `config.json`, as plain data.

Keys and defaults are those of transformers' classes; version 5 renamed `torch_dtype` to `dtype`, and both are read.
`keys` says what becomes of every other key.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from hybrid.errors import ModelConfigError
from hybrid.families.config.activation import Activation, read_activation
from hybrid.families.config.rope import Rope, parse_rope
from hybrid.families.config.values import ConfigValues
from hybrid.graph.graph import ElementType

_DTYPES = {
    "float32": ElementType.FLOAT,
    "float16": ElementType.FLOAT16,
    "bfloat16": ElementType.BFLOAT16,
}
_USUAL = {"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32}
_MAX_TOKEN_ID = 2**24
_MAX_HEAD_DIM = 1024


@dataclass(frozen=True)
class DecoderConfig:
    """A decoder, in the words of all families. Sizes are in elements; what has a default does nothing there.

    `windows` has the tokens that a query of each layer sees, itself included; None for all that are before it.
    `dtype` is that of the weights, when there is nothing but the config; `notes` is what the user has to know.
    """

    model_type: str
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    activation: Activation
    rms_norm_eps: float
    rope: Rope
    windows: tuple[int | None, ...]
    attention_scale: float  # of the scores
    tie_word_embeddings: bool
    dtype: ElementType
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]
    rope_interleaved: bool = False  # pairs are neighbours in a head, not half a head apart
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    mlp_gate: bool = True
    packed_projections: bool = False  # queries, keys and values are one Linear; so are gate and up
    qk_norm: Literal["each head", "all heads"] | None = None  # what a norm of queries, and one of keys, is over
    unrotated_layers: frozenset[int] = frozenset()  # whose attention knows no positions
    embedding_multiplier: float = 1.0
    embedding_multiplier_as_stored: bool = False  # rounded to the type of the table
    residual_multiplier: float = 1.0  # of what a block adds
    logits_multiplier: float = 1.0
    attention_softcap: float | None = None  # scores and logits become softcap * tanh(value / softcap)
    logits_softcap: float | None = None
    norm_offset: float = 0.0  # is added to the weights of norms
    notes: tuple[str, ...] = ()

    @property
    def num_layers(self) -> int:
        """Count the layers."""
        return len(self.windows)

    @property
    def max_positions(self) -> int:
        """Give the tokens that a context may have."""
        return self.rope.context_limit


def read_decoder(
    values: ConfigValues,
    sizes: Mapping[str, int],
    head_dim: int | None = None,
    rope_theta: float = 10000.0,
    rms_norm_eps: float = 1e-6,
    rotates_part: bool = False,
) -> DecoderConfig:
    """Read what all families have: no windows, no biases.

    `sizes`, `rope_theta` and `rms_norm_eps` are what missing keys stand for, where that is not the usual; `head_dim` is
    that of heads that do not share `hidden_size`; `rotates_part` says that `partial_rotary_factor` counts. Raises
    ModelConfigError for values that are missing or cannot be, UnsupportedModelError for what we do not run.
    """

    def size(key: str, most: int) -> int:
        return values.whole(key, most, {**_USUAL, **sizes}[key])

    hidden, heads = size("hidden_size", 2**20), size("num_attention_heads", 2**14)
    layers = size("num_hidden_layers", 4096)
    kv_heads = values.whole("num_key_value_heads", 2**14, sizes.get("num_key_value_heads", heads), null=heads)
    if heads % kv_heads:
        raise ModelConfigError(
            f"{values.where}: num_key_value_heads is {kv_heads}, must divide num_attention_heads, {heads}"
        )
    head_dim = _head_dim(values, hidden, heads, head_dim)
    vocab = size("vocab_size", _MAX_TOKEN_ID)
    rope = parse_rope(values, head_dim, size("max_position_embeddings", 2**28), rope_theta, rotates_part)
    starts = values.token_ids("bos_token_id", vocab)
    return DecoderConfig(
        model_type=values.table["model_type"],
        hidden_size=hidden,
        intermediate_size=size("intermediate_size", 2**22),
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        vocab_size=vocab,
        activation=read_activation(values),
        rms_norm_eps=values.number("rms_norm_eps", 0.0, 1.0, rms_norm_eps),
        rope=rope,
        windows=(None,) * layers,
        attention_scale=head_dim**-0.5,
        tie_word_embeddings=values.flag("tie_word_embeddings"),
        dtype=_dtype(values),
        bos_token_id=starts[0] if starts else None,
        eos_token_ids=values.token_ids("eos_token_id", vocab),
        notes=rope.notes,
    )


def _head_dim(values: ConfigValues, hidden: int, heads: int, default: int | None) -> int:
    if values.table.get("head_dim") is not None:
        head_dim = values.whole("head_dim", _MAX_HEAD_DIM)
    elif default is not None:
        head_dim = default
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


def _dtype(values: ConfigValues) -> ElementType:
    key = "dtype" if values.table.get("dtype") is not None else "torch_dtype"
    value = values.table.get(key)
    if value in (None, "auto"):
        return ElementType.BFLOAT16
    name = value.removeprefix("torch.") if isinstance(value, str) else value
    if not isinstance(name, str) or name not in _DTYPES:
        raise values.error(key, f"one of {', '.join(_DTYPES)}")
    return _DTYPES[name]
