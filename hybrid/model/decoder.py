"""The Decoder: a graph together with how to feed it and what its model folder says about text."""

from dataclasses import dataclass
from pathlib import Path

from hybrid.graph.graph import Graph


@dataclass(frozen=True)
class CachePair:
    """One cached tensor: the input that takes the past and the output that gives the present."""

    past: str
    present: str


@dataclass(frozen=True)
class Decoder:
    """An opened model. Token ids in, logits out; the cache is carried from step to step by the caller."""

    name: str
    folder: Path
    graph: Graph
    architecture: str  # what it is called, for people: "llama", "onnx (optimum)"
    vocab_size: int
    context_limit: int  # the most positions the model was made for; 0 when the file does not say
    eos_token_ids: tuple[int, ...]
    bos_token_id: int | None
    cache: tuple[CachePair, ...]
    shared_cache: bool  # True: past and present are one buffer of full length (GroupQueryAttention)
    notes: tuple[str, ...] = ()
    limited_by: str = ""  # what allows no more positions
    most_new_tokens: int = 0  # that a step takes; 0 for any number
