"""The Decoder: a graph together with how to feed it and what its model folder says about text."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from hybrid.graph.graph import Graph, Initializer

MAX_CONTEXT_TOKENS = 1 << 22  # of any model


@dataclass(frozen=True)
class CachePair:
    """One cached tensor: the input that takes the past and the output that gives the present."""

    past: str
    present: str


@dataclass(frozen=True, eq=False)
class Switch:
    """Inputs that depend on the length of the whole text: `before` it has `first` tokens, and `after`.

    The cache of a text is made with one of them; with the other it has to be made again.
    """

    first: int
    before: Mapping[str, Initializer]
    after: Mapping[str, Initializer]


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
    is_merged: bool = False  # of two graphs, of which the one that runs may have been made for single tokens
    switches: tuple[Switch, ...] = ()

    @property
    def most_context_tokens(self) -> int:
        """The most tokens that a context of this model may hold."""
        return self.context_limit or MAX_CONTEXT_TOKENS

    def switched(self, tokens: int) -> tuple[bool, ...]:
        """Which of the switches a text of so many tokens is behind."""
        return tuple(tokens >= switch.first for switch in self.switches)
