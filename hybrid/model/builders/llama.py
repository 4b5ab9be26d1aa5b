"""The graph of a Llama, Mistral, Qwen2 or Qwen3 decoder; they differ in biases, q/k norms and windows only.

Everything is float32 but the stored weights: an embedding row is gathered as stored, then cast; a Linear is a
FusedMatMul with its weight as stored, [out, in], whatever its type, and its output is float32 by contract.
(S new tokens, C cache capacity, H hidden, V vocabulary, D head size.)
"""

from collections.abc import Mapping

import numpy as np

from hybrid.errors import UnsupportedModelError, UsageError
from hybrid.graph.graph import ElementType, Graph, Shape
from hybrid.model.builders.rope import rope_tables
from hybrid.model.builders.weights import EMBEDDING, FINAL_NORM, HEAD, initializers
from hybrid.model.builders.writer import MICROSOFT, GraphWriter
from hybrid.model.decoder import CachePair
from hybrid.model.hf_config import DecoderConfig
from hybrid.model.safetensors import StoredTensor

_HEAD_DIM_STEP = 8  # GroupQueryAttention's, on the CPU
_FUSED_ROTARY_STEP = 16  # and with do_rotary


def build(config: DecoderConfig, tensors: Mapping[str, StoredTensor] | None, context_tokens: int, name: str) -> Graph:
    """The decoder as a graph over the tensors in their files, or over nothing when `tensors` is None.

    In: `input_ids` int64 (1, S); `position_ids` int64 (1, S), only when head_dim is no multiple of 16;
    `seqlens_k` int32 (1,), past + new - 1; `total_sequence_length` int32 (); `past_key_values.{i}.key/.value`
    (1, kv heads, C, D). Out: `logits` (1, 1, V) of the last position; `present.{i}.key/.value`, the past's
    buffers with S tokens added. Rotary tables reach to `context_tokens`. Raises the errors of
    `weights.initializers`, UnsupportedModelError for a head size that onnxruntime cannot run, UsageError for
    a context that cannot be.
    """
    if context_tokens < 1:
        raise UsageError(f"context is {context_tokens} tokens, must be at least 1")
    if config.head_dim % _HEAD_DIM_STEP:
        raise UnsupportedModelError(f"{name}: head_dim is {config.head_dim}, must be a multiple of {_HEAD_DIM_STEP}")
    return _Llama(config, tensors, context_tokens).build(name)


def cache_pairs(config: DecoderConfig) -> tuple[CachePair, ...]:
    """The cache tensors in layer order, key before value."""
    return tuple(
        CachePair(f"past_key_values.{layer}.{part}", f"present.{layer}.{part}")
        for layer in range(config.num_layers)
        for part in ("key", "value")
    )


class _Llama:
    def __init__(self, config: DecoderConfig, tensors: Mapping[str, StoredTensor] | None, context_tokens: int) -> None:
        self.config = config
        self.write = GraphWriter(initializers(config, tensors))
        self.rotary_apart = config.head_dim % _FUSED_ROTARY_STEP != 0
        cos, sin = rope_tables(config, context_tokens)
        self.rope = (
            self.write.constant("rope.cos", cos),
            self.write.constant("rope.sin", sin),
        )  # (context, D/2)

    def build(self, name: str) -> Graph:
        config, write = self.config, self.write
        self._declare_inputs()
        rows = write.node(
            "Gather",
            (EMBEDDING, "input_ids"),
            "model.embed_tokens",
            self._hidden(config.hidden_size),
            write.types[EMBEDDING],
            axis=0,
        )
        residual, branch = write.as_float(rows), ""  # (1, S, H); the residual still lacks the branch
        for layer in range(config.num_layers):
            residual, branch = self._layer(f"model.layers.{layer}", layer, residual, branch)
        normed, _ = self._norm("model.norm", FINAL_NORM, residual, branch, last=True)
        last = write.constant("last_token", np.array([-1], np.int64))
        hidden = write.node("Gather", (normed, last), "model.last", (1, 1, config.hidden_size), axis=1)
        write.output(self._linear("lm_head", hidden, EMBEDDING if config.tie_word_embeddings else HEAD, "logits"))
        for pair in cache_pairs(config):
            write.output(pair.present)
        return write.graph(name)

    def _declare_inputs(self) -> None:
        write, config = self.write, self.config
        write.input("input_ids", ElementType.INT64, (1, "S"))
        if self.rotary_apart:
            write.input("position_ids", ElementType.INT64, (1, "S"))
        write.input("seqlens_k", ElementType.INT32, (1,))
        write.input("total_sequence_length", ElementType.INT32, ())
        for pair in cache_pairs(config):
            write.input(pair.past, ElementType.FLOAT, self._cache_shape())
        if config.qk_norm:
            write.constant("q_heads", np.array([0, 0, config.num_heads, config.head_dim], np.int64))
            write.constant("k_heads", np.array([0, 0, config.num_kv_heads, config.head_dim], np.int64))
            write.constant("heads_joined", np.array([0, 0, -1], np.int64))

    def _layer(self, prefix: str, layer: int, residual: str, branch: str) -> tuple[str, str]:
        """One layer: the residual before its MLP, and what the MLP adds to it."""
        write, inner = self.write, self._hidden(self.config.intermediate_size)
        name = f"{prefix}.input_layernorm"
        normed, residual = self._norm(name, f"{name}.weight", residual, branch)
        branch = self._attention(f"{prefix}.self_attn", layer, normed)
        name = f"{prefix}.post_attention_layernorm"
        normed, residual = self._norm(name, f"{name}.weight", residual, branch)
        gate = self._linear(f"{prefix}.mlp.gate_proj", normed)
        up = self._linear(f"{prefix}.mlp.up_proj", normed)
        # QuickGelu is x * sigmoid(alpha * x): with alpha 1 it is SiLU in one pass, a fifth faster than
        # Sigmoid and Mul.
        silu = write.node("QuickGelu", (gate,), f"{prefix}.mlp.act_fn", inner, domain=MICROSOFT, alpha=1.0)
        product = write.node("Mul", (silu, up), f"{prefix}.mlp.gated", inner)
        return residual, self._linear(f"{prefix}.mlp.down_proj", product)

    def _attention(self, prefix: str, layer: int, normed: str) -> str:
        write, config = self.write, self.config
        query, key, value = (self._linear(f"{prefix}.{part}_proj", normed) for part in "qkv")
        if config.qk_norm:
            query = self._head_norm(f"{prefix}.q_norm", query, "q_heads")
            key = self._head_norm(f"{prefix}.k_norm", key, "k_heads")
        if self.rotary_apart:
            query = self._rotate(f"{prefix}.q_rotary", query)
            key = self._rotate(f"{prefix}.k_rotary", key)
        past = [f"past_key_values.{layer}.{part}" for part in ("key", "value")]
        window = config.window_of(layer)
        # onnxruntime counts the query itself in local_window_size, as transformers does in sliding_window
        # (from 1.24 on; before, its window was one token wider).
        attended = write.node(
            "GroupQueryAttention",
            (
                query,
                key,
                value,
                *past,
                "seqlens_k",
                "total_sequence_length",
                *(() if self.rotary_apart else self.rope),
            ),
            f"{prefix}.attention",
            self._hidden(config.num_heads * config.head_dim),
            more_outputs={f"present.{layer}.{part}": self._cache_shape() for part in ("key", "value")},
            domain=MICROSOFT,
            num_heads=config.num_heads,
            kv_num_heads=config.num_kv_heads,
            scale=config.head_dim**-0.5,
            do_rotary=0 if self.rotary_apart else 1,
            rotary_interleaved=0,
            local_window_size=-1 if window is None else window,
        )
        return self._linear(f"{prefix}.o_proj", attended)

    def _linear(self, name: str, source: str, weight: str = "", output: str = "") -> str:
        """x W^T + b, float32. The matmul node carries the module's name; (1, S, in) to (1, S, out)."""
        write = self.write
        weight, output, bias = weight or f"{name}.weight", output or name, f"{name}.bias"
        shape: Shape = (*write.shapes[source][:-1], write.shapes[weight][0])
        biased = bias in write.initializers
        product = f"{output}.matmul" if biased else output
        write.node("FusedMatMul", (source, weight), product, shape, domain=MICROSOFT, name=name, transB=1)
        if not biased:
            return product
        return write.node("Add", (product, write.as_float(bias)), output, shape, name=f"{name}.add_bias")

    def _norm(self, name: str, weight: str, residual: str, branch: str, last: bool = False) -> tuple[str, str]:
        """RMS norm of residual + branch, and that sum (empty after the last norm, where nothing reads it)."""
        write, config = self.write, self.config
        gamma, shape = write.as_float(weight), self._hidden(config.hidden_size)
        if not branch:  # the first norm, straight after the embedding
            return self._plain_norm(name, residual, gamma), residual
        total = "" if last else f"{name}.sum"
        write.node(
            "SkipSimplifiedLayerNormalization",
            (residual, branch, gamma),
            name,
            shape,
            more_outputs=None if last else {"-mean": (), "-inv_std_var": (), total: shape},
            domain=MICROSOFT,
            epsilon=config.rms_norm_eps,
        )
        return name, total

    def _plain_norm(self, name: str, source: str, gamma: str) -> str:
        # Not an operator of ONNX, but onnxruntime knows it in the default domain, as genai exports use it.
        return self.write.node(
            "SimplifiedLayerNormalization",
            (source, gamma),
            name,
            self.write.shapes[source],
            axis=-1,
            epsilon=self.config.rms_norm_eps,
            stash_type=1,
        )

    def _head_norm(self, name: str, source: str, heads_shape: str) -> str:
        """RMS norm over each head: (1, S, heads * D) to heads, norm, and back."""
        write = self.write
        shape = write.shapes[source]
        heads = self.config.num_heads if heads_shape == "q_heads" else self.config.num_kv_heads
        split = write.node("Reshape", (source, heads_shape), f"{name}.heads", (1, "S", heads, self.config.head_dim))
        normed = self._plain_norm(name, split, write.as_float(f"{name}.weight"))
        return write.node("Reshape", (normed, "heads_joined"), f"{name}.joined", shape)

    def _rotate(self, name: str, source: str) -> str:
        return self.write.node(
            "RotaryEmbedding",
            (source, "position_ids", *self.rope),
            name,
            self.write.shapes[source],
            domain=MICROSOFT,
            interleaved=0,
        )

    def _hidden(self, width: int) -> Shape:
        return (1, "S", width)

    def _cache_shape(self) -> Shape:
        return (1, self.config.num_kv_heads, "C", self.config.head_dim)
