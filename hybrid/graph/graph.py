"""The Graph: a decoder as nodes, tensors and weights that still lie in their files. Plain data, no onnx needed."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from functools import cached_property
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from offload.storage.stored_array import StoredArray
from offload.storage.weight_file import FileRange

Dim = int | str | None  # a number, a name ("S" new tokens, "T" past + new, "C" cache capacity), or not known
Shape = tuple[Dim, ...]


class ElementType(IntEnum):
    """Element types by their number in the ONNX format (onnx.proto, TensorProto.DataType)."""

    UNDEFINED = 0
    FLOAT = 1
    UINT8 = 2
    INT8 = 3
    UINT16 = 4
    INT16 = 5
    INT32 = 6
    INT64 = 7
    STRING = 8
    BOOL = 9
    FLOAT16 = 10
    DOUBLE = 11
    UINT32 = 12
    UINT64 = 13
    COMPLEX64 = 14
    COMPLEX128 = 15
    BFLOAT16 = 16
    FLOAT8E4M3FN = 17
    FLOAT8E4M3FNUZ = 18
    FLOAT8E5M2 = 19
    FLOAT8E5M2FNUZ = 20
    UINT4 = 21
    INT4 = 22
    FLOAT4E2M1 = 23

    @property
    def bits(self) -> int:
        """Bits of one element."""
        name = self.name
        if name in ("UINT4", "INT4", "FLOAT4E2M1"):
            return 4
        if name in ("UINT8", "INT8", "BOOL") or name.startswith("FLOAT8"):
            return 8
        if name in ("UINT16", "INT16", "FLOAT16", "BFLOAT16"):
            return 16
        if name in ("INT64", "UINT64", "DOUBLE", "COMPLEX64"):
            return 64
        return 128 if name == "COMPLEX128" else 32

    @property
    def storage_dtype(self) -> np.dtype[Any]:
        """A numpy dtype of the same width; bfloat16 is kept as uint16, 4- and 8-bit oddities as uint8."""
        plain = {
            ElementType.FLOAT: "float32",
            ElementType.UINT8: "uint8",
            ElementType.INT8: "int8",
            ElementType.UINT16: "uint16",
            ElementType.INT16: "int16",
            ElementType.INT32: "int32",
            ElementType.INT64: "int64",
            ElementType.BOOL: "bool",
            ElementType.FLOAT16: "float16",
            ElementType.DOUBLE: "float64",
            ElementType.UINT32: "uint32",
            ElementType.UINT64: "uint64",
            ElementType.BFLOAT16: "uint16",
        }
        return np.dtype(plain.get(self, "uint8"))


@dataclass(frozen=True, eq=False)
class Initializer:
    """A constant tensor: in a file, in memory, or (when only a config is known) nowhere yet."""

    name: str
    element_type: ElementType
    shape: tuple[int, ...]
    source: FileRange | npt.NDArray[Any] | None

    @property
    def nbytes(self) -> int:
        """Bytes of the stored elements; 4-bit elements are packed two to a byte."""
        return (prod(self.shape) * self.element_type.bits + 7) // 8

    def stored(self) -> StoredArray:
        """The elements where they lie. bfloat16 is uint16; 4-bit elements are bytes. Raises ValueError for none."""
        if self.source is None:
            raise ValueError(f"{self.name}: this graph was made from a config alone and has no weights")
        shape = (self.nbytes,) if self.element_type.bits < 8 else self.shape
        return StoredArray.at(self.source, self.element_type.storage_dtype, shape)

    def array(self) -> npt.NDArray[Any]:
        """The elements of `stored`, memory-mapped when they lie in a file."""
        return self.source if isinstance(self.source, np.ndarray) else self.stored().array()


@dataclass(frozen=True)
class TensorInfo:
    """Name, element type and shape of a graph input or output."""

    name: str
    element_type: ElementType
    shape: Shape | None  # None: not even the rank is known


@dataclass(frozen=True, eq=False)
class Node:
    """One operator. An empty input name is an optional input that is not given.

    The bodies of control flow are attributes that are Graphs; they may read tensors of the graphs around them. What
    a builder knows of a Linear or an attention is its `kind`, the same in all layers ("q_proj"), and its `layer`.
    """

    op_type: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    domain: str = ""
    name: str = ""
    kind: str = ""
    layer: int | None = None

    @cached_property
    def bodies(self) -> Mapping[str, "Graph"]:
        """The bodies of a control-flow node, by attribute."""
        return {name: value for name, value in self.attributes.items() if isinstance(value, Graph)}

    @cached_property
    def reads(self) -> tuple[str, ...]:
        """Every tensor the node needs, those that its bodies read around them included."""
        captured = (name for body in self.bodies.values() for name in body.captured)
        return tuple(name for name in (*self.inputs, *captured) if name)


@dataclass(frozen=True, eq=False)
class Graph:
    """A decoder, or the body of a control-flow node. `nodes` are in topological order.

    `types` and `shapes` hold what is known of inner tensors.
    """

    name: str
    nodes: tuple[Node, ...]
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    initializers: Mapping[str, Initializer]
    opsets: Mapping[str, int]
    types: Mapping[str, ElementType] = field(default_factory=dict)
    shapes: Mapping[str, Shape] = field(default_factory=dict)

    @property
    def has_weights(self) -> bool:
        """Tell whether its weights lie somewhere; those of a config alone do not."""
        return all(initializer.source is not None for initializer in self.initializers.values())

    @cached_property
    def producers(self) -> dict[str, Node]:
        """The node that writes each tensor."""
        return {output: node for node in self.nodes for output in node.outputs if output}

    @cached_property
    def captured(self) -> tuple[str, ...]:
        """The tensors of the graphs around it that a body reads; empty for a whole model."""
        own = {*self.initializers, *(info.name for info in self.inputs), *self.producers}
        read = [name for node in self.nodes for name in node.reads] + [info.name for info in self.outputs]
        return tuple(dict.fromkeys(name for name in read if name not in own))

    @cached_property
    def constants(self) -> set[str]:
        """Initializers and what is computed from them alone: onnxruntime folds these where they are read."""
        found = set(self.initializers)
        for node in self.nodes:
            if found.issuperset(node.reads) and not node.op_type.startswith("Random"):
                found.update(node.outputs)
        return found

    @cached_property
    def consumers(self) -> dict[str, list[Node]]:
        """The nodes that read each tensor."""
        readers: dict[str, list[Node]] = {}
        for node in self.nodes:
            for name in dict.fromkeys(node.reads):
                readers.setdefault(name, []).append(node)
        return readers


def body_initializers(nodes: Iterable[Node]) -> Iterator[Initializer]:
    """The constants in the bodies of control-flow nodes, at any depth."""
    for node in nodes:
        for body in node.bodies.values():
            yield from body.initializers.values()
            yield from body_initializers(body.nodes)
