"""The weights of a Llama-like decoder: what must be in its files, checked against its config."""

import re
from collections.abc import Iterable, Mapping

from hybrid.errors import ModelConfigError, ModelFileError, UnsupportedModelError
from hybrid.families.config import DecoderConfig
from hybrid.formats.safetensors import StoredTensor
from hybrid.graph.graph import ElementType, Initializer
from hybrid.shown import show

BASE = "model."
EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"
FINAL_NORM = "model.norm.weight"

_FLOATS = (ElementType.FLOAT, ElementType.FLOAT16, ElementType.BFLOAT16)
# GPTQ, AWQ, bitsandbytes, compressed-tensors, fp8 and MLX, in this order.
_QUANTISED = re.compile(
    r"\.(qweight|qzeros|g_idx|SCB|absmax|quant_map|quant_state.*|weight_packed|weight_scale(_inv)?|weight_zero_point"
    r"|input_scale|weight_shape|scales)$"
)
_INSTEAD = "use the original float checkpoint, or an ONNX export with int4 or int8 weights"
_OF_BASE = re.compile(r"(embed_tokens|layers|norm)\.")
# What older versions of transformers saved beside the weights, and can be worked out.
_LEFTOVER = re.compile(r"(^|\.)(rotary_emb\.(inv_freq|cos_cached|sin_cached)|masked_bias|position_ids)$")
_ADAPTER = re.compile(r"\.lora_(A|B|embedding_A|embedding_B|magnitude_vector)\b")


def expected_shapes(config: DecoderConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor that a decoder of this config reads. Matrices are (out, in)."""
    hidden, inner, head = config.hidden_size, config.intermediate_size, config.head_dim
    q, kv = config.num_heads * head, config.num_kv_heads * head
    shapes: dict[str, tuple[int, ...]] = {EMBEDDING: (config.vocab_size, hidden)}

    def linear(name: str, rows: int, columns: int, bias: bool) -> None:
        shapes[f"{name}.weight"] = (rows, columns)
        if bias:
            shapes[f"{name}.bias"] = (rows,)

    for layer in range(config.num_layers):
        prefix = f"model.layers.{layer}"
        shapes[f"{prefix}.input_layernorm.weight"] = (hidden,)
        linear(f"{prefix}.self_attn.q_proj", q, hidden, config.qkv_bias)
        linear(f"{prefix}.self_attn.k_proj", kv, hidden, config.qkv_bias)
        linear(f"{prefix}.self_attn.v_proj", kv, hidden, config.qkv_bias)
        linear(f"{prefix}.self_attn.o_proj", hidden, q, config.o_bias)
        if config.qk_norm:
            shapes[f"{prefix}.self_attn.q_norm.weight"] = (head,)
            shapes[f"{prefix}.self_attn.k_norm.weight"] = (head,)
        shapes[f"{prefix}.post_attention_layernorm.weight"] = (hidden,)
        linear(f"{prefix}.mlp.gate_proj", inner, hidden, config.mlp_bias)
        linear(f"{prefix}.mlp.up_proj", inner, hidden, config.mlp_bias)
        linear(f"{prefix}.mlp.down_proj", hidden, inner, config.mlp_bias)
    shapes[FINAL_NORM] = (hidden,)
    if not config.tie_word_embeddings:
        shapes[HEAD] = (config.vocab_size, hidden)
    return shapes


def initializers(config: DecoderConfig, tensors: Mapping[str, StoredTensor] | None) -> dict[str, Initializer]:
    """Every weight of the decoder. Without `tensors` they have the config's dtype and no source.

    Raises ModelFileError for a tensor that is not there, ModelConfigError for one whose shape contradicts the
    config, UnsupportedModelError for quantised weights and adapters.
    """
    shapes = expected_shapes(config)
    if tensors is None:
        return {name: Initializer(name, config.dtype, shape, None) for name, shape in shapes.items()}
    _refuse_quantised(tensors)
    weights = {}
    for name, shape in shapes.items():
        tensor = tensors.get(name)
        if tensor is None:
            raise ModelFileError(
                f"{_folder(tensors)}: tensor {name} is missing, config.json asks for one of {list(shape)}"
            )
        where = f"{show(tensor.source.path)}: tensor {name}"
        if tensor.dtype not in _FLOATS:
            raise UnsupportedModelError(
                f"{where} is {tensor.dtype.name}, must be FLOAT, FLOAT16 or BFLOAT16; {_INSTEAD}"
            )
        if tensor.shape != shape:
            raise ModelConfigError(f"{where} has shape {list(tensor.shape)}, config.json asks for {list(shape)}")
        weights[name] = Initializer(name, tensor.dtype, shape, tensor.source)
    return weights


def unused_tensors(config: DecoderConfig, tensors: Iterable[str]) -> list[str]:
    """Names of tensors that the decoder does not read, apart from those that say nothing new."""
    expected = expected_shapes(config)
    # A head that is still here and not expected equals the embedding: see `tied_head`.
    return [name for name in tensors if name not in expected and name != HEAD and not _LEFTOVER.search(name)]


def with_usual_names(tensors: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """The tensors by the names that a model with a head has; one saved without its head lacks the first part.

    As in transformers, each tensor for itself.
    """

    def usual(name: str) -> str:
        based = f"{BASE}{name}"
        return based if _OF_BASE.match(name) and based not in tensors else name

    return {usual(name): tensor for name, tensor in tensors.items()}


def _refuse_quantised(tensors: Mapping[str, StoredTensor]) -> None:
    for name, tensor in tensors.items():
        if _QUANTISED.search(name):
            raise UnsupportedModelError(
                f"{show(tensor.source.path)}: tensor {show(name)} is part of quantised weights; {_INSTEAD}"
            )
        if _ADAPTER.search(name):
            raise UnsupportedModelError(
                f"{show(tensor.source.path)}: tensor {show(name)} is part of a LoRA adapter;"
                " merge it into its base model first"
            )


def _folder(tensors: Mapping[str, StoredTensor]) -> str:
    files = sorted({tensor.source.path for tensor in tensors.values()})
    return f"{show(files[0])} and {len(files) - 1} more" if files[1:] else show(files[0])
