"""The graph of a Llama, Mistral, Qwen2 or Qwen3 decoder; they differ in biases, q/k norms and windows only.

Everything is float32 but the stored weights: an embedding row is gathered as stored, then cast; a Linear is a
FusedMatMul with its weight as stored, [out, in], whatever its type, and its output is float32 by contract.
(S new tokens, C cache capacity, H hidden, V vocabulary, D head size.)
"""

from collections.abc import Mapping

import numpy as np

from hybrid.errors import UsageError
from hybrid.families.config import DecoderConfig
from hybrid.families.rope import rope_tables
from hybrid.families.weights import EMBEDDING, FINAL_NORM, HEAD, initializers
from hybrid.families.writer import MICROSOFT, GraphWriter
from hybrid.formats.safetensors import StoredTensor
from hybrid.graph.decoder import CachePair
from hybrid.graph.graph import ElementType, Graph, Shape
from offload.spec.units import counted

_HEAD_DIM_STEP = 8  # GroupQueryAttention's, on the CPU: heads of other sizes are padded with zeros
_FUSED_ROTARY_STEP = 16  # and with do_rotary
_QUICK_GELU_ALPHA = {"silu": 1.0, "quick_gelu": 1.702}
_GELU_APPROXIMATION = {"gelu": "none", "gelu_tanh": "tanh"}


def build(config: DecoderConfig, tensors: Mapping[str, StoredTensor] | None, context_tokens: int, name: str) -> Graph:
    """The decoder as a graph over the tensors in their files, or over nothing when `tensors` is None.

    In: `input_ids` int64 (1, S); `position_ids` int64 (1, S), only when head_dim is no multiple of 16;
    `seqlens_k` int32 (1,), past + new - 1; `total_sequence_length` int32 (); `past_key_values.{i}.key/.value`
    (1, kv heads, C, D, up to the next multiple of 8). Out: `logits` (1, 1, V) of the last position;
    `present.{i}.key/.value`, the past's buffers with S tokens added. Rotary tables reach to `context_tokens`. Raises
    the errors of `weights.initializers`, UsageError for a context that cannot be.
    """
    if context_tokens < 1:
        raise UsageError(f"context is {counted(context_tokens, 'token')}, must be at least 1")
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
        self.padding = -config.head_dim % _HEAD_DIM_STEP
        self.padded_dim = config.head_dim + self.padding
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
        if config.qk_norm or self.padding:
            write.constant("q_heads", np.array([0, 0, config.num_heads, config.head_dim], np.int64))
            write.constant("k_heads", np.array([0, 0, config.num_kv_heads, config.head_dim], np.int64))
            write.constant("heads_joined", np.array([0, 0, -1], np.int64))
        if self.padding:
            write.constant("padded_heads", np.array([0, 0, config.num_heads, self.padded_dim], np.int64))
            write.constant("padding", np.array([0] * 7 + [self.padding], np.int64))
            for name, value in (("head_start", 0), ("head_end", config.head_dim), ("head_axis", 3)):
                write.constant(name, np.array([value], np.int64))

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
        active = self._activation(f"{prefix}.mlp.act_fn", gate)
        product = write.node("Mul", (active, up), f"{prefix}.mlp.gated", inner)
        return residual, self._linear(f"{prefix}.mlp.down_proj", product)

    def _attention(self, prefix: str, layer: int, normed: str) -> str:
        write, config = self.write, self.config
        query, key, value = (self._linear(f"{prefix}.{part}_proj", normed) for part in "qkv")
        if config.qk_norm:
            query = self._head_norm(f"{prefix}.q_norm", query)
            key = self._head_norm(f"{prefix}.k_norm", key)
        if self.rotary_apart:
            query = self._rotate(f"{prefix}.q_rotary", query)
            key = self._rotate(f"{prefix}.k_rotary", key)
        if self.padding:
            query, key, value = (
                self._pad_heads(f"{prefix}.{part}_padded", tensor)
                for part, tensor in (("q", query), ("k", key), ("v", value))
            )
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
            self._hidden(config.num_heads * self.padded_dim),
            more_outputs={f"present.{layer}.{part}": self._cache_shape() for part in ("key", "value")},
            domain=MICROSOFT,
            num_heads=config.num_heads,
            kv_num_heads=config.num_kv_heads,
            scale=config.head_dim**-0.5,
            do_rotary=0 if self.rotary_apart else 1,
            rotary_interleaved=0,
            local_window_size=-1 if window is None else window,
        )
        if self.padding:
            attended = self._unpad_heads(f"{prefix}.attention.unpadded", attended)
        return self._linear(f"{prefix}.o_proj", attended)

    def _activation(self, name: str, source: str) -> str:
        write, kind = self.write, self.config.activation
        shape = write.shapes[source]
        if kind in _QUICK_GELU_ALPHA:
            # x * sigmoid(alpha * x): with alpha 1 it is SiLU in one pass, a fifth faster than Sigmoid and Mul.
            alpha = _QUICK_GELU_ALPHA[kind]
            return write.node("QuickGelu", (source,), name, shape, domain=MICROSOFT, alpha=alpha)
        if kind in _GELU_APPROXIMATION:
            return write.node("Gelu", (source,), name, shape, approximate=_GELU_APPROXIMATION[kind])
        if kind == "relu2":
            positive = write.node("Relu", (source,), f"{name}.relu", shape)
            return write.node("Mul", (positive, positive), name, shape)
        return write.node(kind.capitalize(), (source,), name, shape)  # Relu, Sigmoid, Tanh

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

    def _head_norm(self, name: str, source: str) -> str:
        """RMS norm over each head: (1, S, heads * D) to heads, norm, and back."""
        write = self.write
        shape = write.shapes[source]
        split = self._split_heads(f"{name}.heads", source)
        normed = self._plain_norm(name, split, write.as_float(f"{name}.weight"))
        return write.node("Reshape", (normed, "heads_joined"), f"{name}.joined", shape)

    def _pad_heads(self, name: str, source: str) -> str:
        """Zeros behind each head, which change no score and no sum: (1, S, heads * D) to (1, S, heads * padded D)."""
        write, (_, heads) = self.write, self._heads_of(source)
        split = self._split_heads(f"{name}.heads", source)
        padded = write.node("Pad", (split, "padding"), f"{name}.zeros", (1, "S", heads, self.padded_dim))
        return write.node("Reshape", (padded, "heads_joined"), name, self._hidden(heads * self.padded_dim))

    def _unpad_heads(self, name: str, source: str) -> str:
        write, heads, head_dim = self.write, self.config.num_heads, self.config.head_dim
        split = write.node("Reshape", (source, "padded_heads"), f"{name}.heads", (1, "S", heads, self.padded_dim))
        bounds = ("head_start", "head_end", "head_axis")
        kept = write.node("Slice", (split, *bounds), f"{name}.kept", (1, "S", heads, head_dim))
        return write.node("Reshape", (kept, "heads_joined"), name, self._hidden(heads * head_dim))

    def _split_heads(self, name: str, source: str) -> str:
        """(1, S, heads * D) to (1, S, heads, D)."""
        shape, heads = self._heads_of(source)
        return self.write.node("Reshape", (source, shape), name, (1, "S", heads, self.config.head_dim))

    def _heads_of(self, source: str) -> tuple[str, int]:
        """The shape to split queries or keys with, and how many heads they have."""
        config = self.config
        is_query = self.write.shapes[source][-1] == config.num_heads * config.head_dim
        return ("q_heads", config.num_heads) if is_query else ("k_heads", config.num_kv_heads)

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
        return (1, self.config.num_kv_heads, "C", self.padded_dim)
