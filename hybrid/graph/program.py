"""The Program: a graph cut into levels of one CPU island, and the attentions and Linears that run outside of it."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from hybrid.graph.graph import ElementType, Graph, Initializer, Node, Shape, TensorInfo
from offload.spec.attention import AttentionSpec

_ATTENTION = frozenset(("GroupQueryAttention", "MultiHeadAttention", "Attention", "Softmax"))


@dataclass(frozen=True, eq=False)
class Island:
    """CPU nodes of one level, run by one session.

    `inputs` are tensors of earlier levels, graph inputs and shared constants; `initializers` are its own.
    `has_matmul` is True when it multiplies weights itself and deserves every thread.
    """

    name: str
    nodes: tuple[Node, ...]
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    initializers: tuple[Initializer, ...]
    has_matmul: bool
    dequantises: bool

    @property
    def op_types(self) -> tuple[str, ...]:
        """List the operators of its nodes, each once, in running order."""
        return tuple(dict.fromkeys(node.op_type for node in self.nodes))

    @property
    def is_attention(self) -> bool:
        """True when reading the cache is what it is for."""
        return not self.has_matmul and not _ATTENTION.isdisjoint(self.op_types)


@dataclass(frozen=True)
class OutsideLinear:
    """A Linear that is run outside onnxruntime: float32 rows of `input` to float32 rows of `output`."""

    name: str
    group: str
    input: str
    output: str
    out_features: int


@dataclass(frozen=True)
class OutsideAttention:
    """An attention that is run outside onnxruntime: float32 rows of its inputs to float32 rows of `output`.

    `key` and `value` are "" where `query` holds all three side by side; `cos` and `sin` are initializers, "" where
    nothing is rotated. The tensors of the cache are inputs of the graph; new tokens are appended in place.
    """

    name: str
    spec: AttentionSpec
    query: str
    key: str
    value: str
    past_key: str
    past_value: str
    lengths: str
    cos: str
    sin: str
    output: str

    @property
    def inputs(self) -> tuple[str, ...]:
        """List the tensors of this step that it reads."""
        return tuple(name for name in (self.query, self.key, self.value, self.lengths) if name)


@dataclass(frozen=True, eq=False)
class ProgramLevel:
    """One station of the step: the island first, then the attentions and Linears that read what it wrote."""

    island: Island | None
    linears: tuple[OutsideLinear, ...]
    attentions: tuple[OutsideAttention, ...] = ()


@dataclass(frozen=True, eq=False)
class Program:
    """The cut graph, in running order. `constants` are initializers that several islands read, fed to each."""

    graph: Graph
    levels: tuple[ProgramLevel, ...]
    constants: Mapping[str, Initializer]

    @property
    def inputs(self) -> tuple[TensorInfo, ...]:
        """List the tensors that a step is fed."""
        return self.graph.inputs

    @property
    def outputs(self) -> tuple[TensorInfo, ...]:
        """List the tensors that a step gives."""
        return self.graph.outputs

    @cached_property
    def last_use(self) -> dict[str, int]:
        """For every tensor that crosses islands, the last level that reads it; outputs are read at the end."""
        last: dict[str, int] = {}
        for number, level in enumerate(self.levels):
            if level.island is not None:
                last |= {info.name: number for info in level.island.inputs}
            last |= {linear.input: number for linear in level.linears}
            last |= {name: number for attention in level.attentions for name in attention.inputs}
        return last | {info.name: len(self.levels) for info in self.outputs}

    def shape(self, name: str) -> Shape | None:
        """Give the known shape of a tensor."""
        return self.graph.shapes.get(name)

    def element_type(self, name: str) -> ElementType:
        """The element type of a tensor."""
        return self.graph.types[name]
