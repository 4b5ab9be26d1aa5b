"""Sizes of the Llama decoders that the benchmarks run."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Shape:
    """Sizes of a Llama decoder. Heads are counts, the rest are widths in elements; the head is untied."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    max_positions: int = 2048
    rope_theta: float = 10_000.0
    eps: float = 1e-5

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Hugging Face tensor names in file order; shapes (out, in) for matrices, (hidden,) for norms."""
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        hidden, inner = self.hidden, self.intermediate
        found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (self.vocab, hidden)}
        for layer in range(self.layers):
            prefix = f"model.layers.{layer}."
            found |= {
                prefix + "input_layernorm.weight": (hidden,),
                prefix + "self_attn.q_proj.weight": (q, hidden),
                prefix + "self_attn.k_proj.weight": (kv, hidden),
                prefix + "self_attn.v_proj.weight": (kv, hidden),
                prefix + "self_attn.o_proj.weight": (hidden, q),
                prefix + "post_attention_layernorm.weight": (hidden,),
                prefix + "mlp.gate_proj.weight": (inner, hidden),
                prefix + "mlp.up_proj.weight": (inner, hidden),
                prefix + "mlp.down_proj.weight": (hidden, inner),
            }
        return found | {"model.norm.weight": (hidden,), "lm_head.weight": (self.vocab, hidden)}


SHAPES: Mapping[str, Shape] = {
    "tiny": Shape(2, 64, 176, 4, 2, 16, 512, max_positions=128),  # 158,016 values
    "tinyllama-1.1b": Shape(22, 2048, 5632, 32, 4, 64, 32_000),  # 1.10e9 values
    # Mistral-7B without its sliding window; 7.24e9 values
    "mistral-7b": Shape(32, 4096, 14_336, 32, 8, 128, 32_000, max_positions=32_768),
}
