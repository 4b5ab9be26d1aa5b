"""Write a model with random weights as one GGUF file, the format of llama.cpp."""

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from bench.random_weights import Array, Weights
from bench.shapes import Shape

try:
    gguf: Any = importlib.import_module("gguf")
except ImportError as error:
    raise ImportError("writing GGUF needs the gguf package; run: pip install gguf") from error

_LAYER_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_WHOLE_NAMES = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
_KINDS = {"float16": "F16", "bfloat16": "BF16", "float32": "F32"}


def write_gguf(
    path: Path,
    name: str,
    shape: Shape,
    weights: Weights,
    advance: Callable[[int], object] = lambda nbytes: None,
) -> None:
    """Write `path` with the values of the Hugging Face folder: matrices in its dtype, norms in F32.

    Written to a temporary name and renamed; one tensor in memory at a time. `advance` is told the bytes of
    each tensor. `shape.vocab` must be 259 or more.
    """
    # A real converter permutes the rows of q and k, because llama.cpp pairs neighbouring rows for RoPE where
    # Hugging Face pairs halves. Rows of random numbers cost the same in any order, so they stay as they are:
    # speeds compare between the two files, logits do not.
    kind = _KINDS[weights.dtype.torch]
    writer = gguf.GGUFWriter(None, "llama")
    writer.add_name(name)
    writer.add_file_type(0 if kind == "F32" else gguf.LlamaFileType[f"MOSTLY_{kind}"])
    writer.add_context_length(shape.max_positions)
    writer.add_embedding_length(shape.hidden)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.intermediate)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_rope_freq_base(shape.rope_theta)
    writer.add_layer_norm_rms_eps(shape.eps)
    writer.add_vocab_size(shape.vocab)
    _add_vocabulary(writer, shape.vocab)
    tensors = shape.tensors()
    for tensor, dims in tensors.items():
        norm = len(dims) == 1
        size = int(np.prod(dims)) * (4 if norm else weights.dtype.numpy.itemsize)
        storage = gguf.GGMLQuantizationType["F32" if norm else kind]
        writer.add_tensor_info(_gguf_name(tensor), dims, weights.dtype.numpy, size, raw_dtype=storage)
    partial = path.with_name(path.name + ".partial")
    writer.write_header_to_file(partial)
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for tensor, dims in tensors.items():
        values = weights.tensor(tensor, dims)
        writer.write_tensor_data(_to_float32(values, kind) if len(dims) == 1 else values)
        advance(values.nbytes)
    writer.close()
    partial.replace(path)


def _gguf_name(tensor: str) -> str:
    stem = tensor.removesuffix(".weight")
    if stem in _WHOLE_NAMES:
        return f"{_WHOLE_NAMES[stem]}.weight"
    layer, _, rest = stem.removeprefix("model.layers.").partition(".")
    return f"blk.{layer}.{_LAYER_NAMES[rest]}.weight"


def _to_float32(values: Array, kind: str) -> Array:
    if kind == "BF16":
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float32)


def _add_vocabulary(writer: Any, size: int) -> None:
    """Add `size` dummy tokens, enough for llama.cpp to load the file as a SentencePiece model."""
    kinds = gguf.TokenType
    tokens = ["<unk>", "<s>", "</s>"] + [f"<0x{byte:02X}>" for byte in range(256)]
    types = [kinds.UNKNOWN, kinds.CONTROL, kinds.CONTROL] + [kinds.BYTE] * 256
    tokens += [f"token{index}" for index in range(len(tokens), size)]
    types += [kinds.NORMAL] * (size - len(types))
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([float(-index) for index in range(size)])
    writer.add_token_types(types)
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
