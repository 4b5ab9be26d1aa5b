"""A decoder under construction, block by block.

Everything is float32 but the stored weights: an embedding row is gathered as stored, then cast; Linears multiply
theirs as stored. (S new tokens, C cache capacity, H hidden, V vocabulary, D head size.)
"""

from collections.abc import Iterator

import numpy as np

from hybrid.families.blocks.attention import GroupedAttention, cache_pairs
from hybrid.families.blocks.linear import linear
from hybrid.families.blocks.mlp import mlp
from hybrid.families.blocks.norm import Residual, rms_norm
from hybrid.families.blocks.writer import GraphWriter
from hybrid.families.config.decoder_config import DecoderConfig
from hybrid.families.tensors.tensor_source import EMBEDDING, HEAD, TensorSource
from hybrid.graph.graph import ElementType


def rounded(value: float, element_type: ElementType) -> float:
    """Round a number to the nearest of a float type, to the even one of two."""
    if element_type is ElementType.BFLOAT16:
        bits = int(np.float32(value).view(np.uint32))
        return float(np.uint32((bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000).view(np.float32))
    return float(element_type.storage_dtype.type(value))


class DecoderBuilder:
    """The blocks of a decoder in its config's sizes, over the weights of a source."""

    def __init__(self, config: DecoderConfig, source: TensorSource, context_tokens: int) -> None:
        self.config, self.write = config, GraphWriter(source)
        self.write.input("input_ids", ElementType.INT64, (1, "S"))
        self._attention = GroupedAttention(self.write, config, context_tokens)

    def embed(self) -> Residual:
        """Begin with the embeddings of the tokens, (1, S, H), times a multiplier."""
        write, config = self.write, self.config
        table = write.weight(EMBEDDING, (config.vocab_size, config.hidden_size))
        shape = (1, "S", config.hidden_size)
        rows = write.node("Gather", (table, "input_ids"), "model.embed_tokens", shape, write.types[table], axis=0)
        multiplier = config.embedding_multiplier
        if config.embedding_multiplier_as_stored:
            multiplier = rounded(multiplier, write.types[table])
        scaled = write.scaled("model.embed_tokens.scaled", write.as_float(rows), multiplier)
        return Residual(write, config, scaled)

    def layers(self) -> Iterator[tuple[int, str]]:
        """Go through the layers: number, and what the names of its modules begin with."""
        for layer in range(self.config.num_layers):
            self.write.layer = layer
            yield layer, f"model.layers.{layer}"
        self.write.layer = None

    def norm(self, name: str, source: str) -> str:
        """Write an RMS norm of what a block computed, (1, S, H)."""
        return rms_norm(self.write, self.config, name, source)

    def attention(self, layer: int, prefix: str, normed: str) -> str:
        """Write an attention, (1, S, H) to (1, S, H)."""
        return self._attention.attend(prefix, layer, normed)

    def mlp(self, prefix: str, normed: str) -> str:
        """Write an MLP, (1, S, H) to (1, S, H)."""
        return mlp(self.write, self.config, prefix, normed)

    def head(self, normed: str) -> None:
        """End with the logits (1, 1, V) of the last position."""
        write, config = self.write, self.config
        last = write.constant("last_token", np.array([-1], np.int64))
        hidden = write.node("Gather", (normed, last), "model.last", (1, 1, config.hidden_size), axis=1)
        softcap, weight = config.logits_softcap, EMBEDDING if config.tie_word_embeddings else HEAD
        factor = config.logits_multiplier / (softcap or 1)  # of the logits, which are more than what they are made of
        hidden = write.scaled("model.scaled", hidden, factor)
        output = "lm_head" if softcap else "logits"
        logits = linear(write, "lm_head", hidden, config.vocab_size, weight=weight, output=output)
        if softcap:
            bounded = write.node("Tanh", (logits,), "lm_head.bounded", write.shapes[logits])
            bound = write.constant("lm_head.softcap", np.array(softcap, np.float32))
            write.node("Mul", (bounded, bound), "logits", write.shapes[logits])
        write.output("logits")
        for pair in cache_pairs(config.num_layers):
            write.output(pair.present)
