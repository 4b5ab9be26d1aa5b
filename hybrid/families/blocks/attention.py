"""Grouped-query attention over a cache of full length.

(S new tokens, C cache capacity, D head size.)
"""

from typing import Any

import numpy as np

from hybrid.families.blocks.linear import linear
from hybrid.families.blocks.norm import rms_norm
from hybrid.families.blocks.writer import MICROSOFT, GraphWriter
from hybrid.families.config.decoder_config import DecoderConfig
from hybrid.graph.decoder import CachePair
from hybrid.graph.graph import ElementType, Shape

_HEAD_DIM_STEP = 8  # GroupQueryAttention's, on the CPU: heads of other sizes are padded with zeros
_FUSED_ROTARY_STEP = 16  # and with do_rotary; so it is of the elements that are turned


def cache_pairs(layers: int) -> tuple[CachePair, ...]:
    """Give the cache tensors in layer order, key before value."""
    return tuple(
        CachePair(f"past_key_values.{layer}.{part}", f"present.{layer}.{part}")
        for layer in range(layers)
        for part in ("key", "value")
    )


class GroupedAttention:
    """The attention of every layer: its inputs, and what the layers share."""

    def __init__(self, write: GraphWriter, config: DecoderConfig, context_tokens: int) -> None:
        """Declare the inputs and the rotary tables, which reach to `context_tokens`."""
        self.write, self.config = write, config
        self.padding = -config.head_dim % _HEAD_DIM_STEP
        self.padded_dim = config.head_dim + self.padding
        cos, sin = config.rope.tables(context_tokens)
        self.rotary_dim = 2 * cos.shape[1]
        self.rotary_apart = any(size % _FUSED_ROTARY_STEP for size in (config.head_dim, self.rotary_dim))
        self.rope = write.constant("rope.cos", cos), write.constant("rope.sin", sin)  # (context, pairs)
        self.cache_shape: Shape = (1, config.num_kv_heads, "C", self.padded_dim)
        if self.rotary_apart:
            write.input("position_ids", ElementType.INT64, (1, "S"))
        write.input("seqlens_k", ElementType.INT32, (1,))
        write.input("total_sequence_length", ElementType.INT32, ())
        for pair in cache_pairs(config.num_layers):
            write.input(pair.past, ElementType.FLOAT, self.cache_shape)

    def attend(self, prefix: str, layer: int, normed: str) -> str:
        """Write projections, attention and output projection of a layer, (1, S, H) to (1, S, H)."""
        write, config = self.write, self.config
        query, key, value = self._project(prefix, normed)
        if config.qk_norm:
            query = self._norm(f"{prefix}.q_norm", query)
            key = self._norm(f"{prefix}.k_norm", key)
        if self.rotary_apart and layer not in config.unrotated_layers:
            query = self._rotate(f"{prefix}.q_rotary", query)
            key = self._rotate(f"{prefix}.k_rotary", key)
        if self.padding:
            query = self._pad_heads(f"{prefix}.q_padded", query)
            key = self._pad_heads(f"{prefix}.k_padded", key)
            value = self._pad_heads(f"{prefix}.v_padded", value)
        attended = self._grouped_query_attention(f"{prefix}.attention", layer, (query, key, value))
        if self.padding:
            attended = self._unpad_heads(f"{prefix}.attention.unpadded", attended)
        return linear(write, f"{prefix}.o_proj", attended, config.hidden_size, config.o_bias)

    def _project(self, prefix: str, normed: str) -> tuple[str, str, str]:
        """Write queries, keys and values, (1, S, heads * D); keys and values are "" where queries hold all three."""
        write, config = self.write, self.config
        q, kv = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        widths = {f"{prefix}.q_proj": q, f"{prefix}.k_proj": kv, f"{prefix}.v_proj": kv}
        if not config.packed_projections:
            query, key, value = (linear(write, name, normed, width, config.qkv_bias) for name, width in widths.items())
            return query, key, value
        packed = linear(write, f"{prefix}.qkv_proj", normed, q + 2 * kv, config.qkv_bias)
        if not self.rotary_apart and not config.qk_norm:
            return packed, "", ""
        query, key, value = write.split(packed, widths)
        return query, key, value

    def _grouped_query_attention(self, name: str, layer: int, projected: tuple[str, ...]) -> str:
        config, window = self.config, self.config.windows[layer]
        past = [f"past_key_values.{layer}.{part}" for part in ("key", "value")]
        softcap: dict[str, Any] = {"softcap": config.attention_softcap} if config.attention_softcap else {}
        rope = () if self.rotary_apart or layer in config.unrotated_layers else self.rope
        # onnxruntime counts the query itself in local_window_size, as transformers does in sliding_window
        # (from 1.24 on; before, its window was one token wider).
        return self.write.node(
            "GroupQueryAttention",
            (*projected, *past, "seqlens_k", "total_sequence_length", *rope),
            name,
            (1, "S", config.num_heads * self.padded_dim),
            more_outputs={f"present.{layer}.{part}": self.cache_shape for part in ("key", "value")},
            domain=MICROSOFT,
            kind="attention",
            num_heads=config.num_heads,
            kv_num_heads=config.num_kv_heads,
            scale=config.attention_scale,
            do_rotary=1 if rope else 0,
            rotary_interleaved=int(config.rope_interleaved),
            local_window_size=-1 if window is None else window,
            **softcap,
        )

    def _norm(self, name: str, source: str) -> str:
        """RMS norm over all heads, or over each: (1, S, heads * D) to heads, norm, and back."""
        if self.config.qk_norm == "all heads":
            return rms_norm(self.write, self.config, name, source)
        split = self._split_heads(f"{name}.heads", source, self.config.head_dim)
        return self._join_heads(f"{name}.joined", rms_norm(self.write, self.config, name, split))

    def _pad_heads(self, name: str, source: str) -> str:
        """Zeros behind each head, which change no score and no sum: (1, S, heads * D) to (1, S, heads * padded D)."""
        split = self._split_heads(f"{name}.heads", source, self.config.head_dim)
        padding = self._numbers("padding", *[0] * 7, self.padding)
        shape = (*self.write.shapes[split][:-1], self.padded_dim)
        return self._join_heads(name, self.write.node("Pad", (split, padding), f"{name}.zeros", shape))

    def _unpad_heads(self, name: str, source: str) -> str:
        split = self._split_heads(f"{name}.heads", source, self.padded_dim)
        ends = self._numbers("head_start", 0), self._numbers("head_end", self.config.head_dim)
        shape = (*self.write.shapes[split][:-1], self.config.head_dim)
        kept = self.write.node("Slice", (split, *ends, self._numbers("head_axis", 3)), f"{name}.kept", shape)
        return self._join_heads(name, kept)

    def _split_heads(self, name: str, source: str, size: int) -> str:
        """(1, S, heads * size) to (1, S, heads, size)."""
        shape = self._numbers(f"heads_of_{size}", 0, 0, -1, size)
        return self.write.node("Reshape", (source, shape), name, (1, "S", self.write.width(source) // size, size))

    def _join_heads(self, name: str, source: str) -> str:
        """(1, S, heads, size) to (1, S, heads * size)."""
        heads = self.write.shapes[source][-2]
        assert isinstance(heads, int)
        shape = self._numbers("heads_joined", 0, 0, -1)
        return self.write.node("Reshape", (source, shape), name, (1, "S", heads * self.write.width(source)))

    def _numbers(self, name: str, *values: int) -> str:
        return self.write.constant(name, np.array(values, np.int64))

    def _rotate(self, name: str, source: str) -> str:
        part: dict[str, Any] = {}
        if self.rotary_dim < self.config.head_dim:
            heads = self.write.width(source) // self.config.head_dim
            part = {"num_heads": heads, "rotary_embedding_dim": self.rotary_dim}
        return self.write.node(
            "RotaryEmbedding",
            (source, "position_ids", *self.rope),
            name,
            self.write.shapes[source],
            domain=MICROSOFT,
            interleaved=int(self.config.rope_interleaved),
            **part,
        )
