"""A graph under construction: nodes in running order, and the type and shape of every tensor."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from hybrid.families.tensors.tensor_source import TensorSource
from hybrid.graph.graph import ElementType, Graph, Initializer, Node, Shape, TensorInfo

MICROSOFT = "com.microsoft"  # onnxruntime's own operators: docs/ContribOperators.md in its repository
OPSETS = {"": 21, MICROSOFT: 1}

_NUMPY_TYPES = {np.dtype(np.float32): ElementType.FLOAT, np.dtype(np.int64): ElementType.INT64}


class GraphWriter:
    """Collects nodes, inputs and outputs, and the weights that it takes from a source; `graph` freezes them."""

    def __init__(self, source: TensorSource) -> None:
        self.source = source
        self.layer: int | None = None  # that is being written
        self.nodes: list[Node] = []
        self.inputs: list[TensorInfo] = []
        self.outputs: list[TensorInfo] = []
        self.initializers: dict[str, Initializer] = {}
        self.types: dict[str, ElementType] = {}
        self.shapes: dict[str, Shape] = {}

    def input(self, name: str, element_type: ElementType, shape: Shape) -> str:
        """Declare a graph input."""
        self.inputs.append(TensorInfo(name, element_type, shape))
        return self._tensor(name, element_type, shape)

    def output(self, name: str) -> None:
        """Declare a tensor that is already there a graph output."""
        self.outputs.append(TensorInfo(name, self.types[name], self.shapes[name]))

    def weight(self, name: str, shape: tuple[int, ...]) -> str:
        """Take a weight of this name and shape from the source. Raises its errors."""
        self.initializers[name] = weight = self.source.take(name, shape)
        return self._tensor(name, weight.element_type, shape)

    def constant(self, name: str, values: npt.NDArray[Any]) -> str:
        """A tensor held in memory, float32 or int64."""
        self.initializers[name] = Initializer(name, _NUMPY_TYPES[values.dtype], values.shape, values)
        return self._tensor(name, _NUMPY_TYPES[values.dtype], values.shape)

    def node(
        self,
        op_type: str,
        inputs: Sequence[str],
        output: str,
        shape: Shape,
        element_type: ElementType = ElementType.FLOAT,
        more_outputs: Mapping[str, Shape] | None = None,
        domain: str = "",
        name: str = "",
        kind: str = "",
        **attributes: Any,
    ) -> str:
        """Add a node; returns its first output, of this shape and type. Unless given, its name is that one's.

        `more_outputs` have the same type. A key that begins with "-" is an optional output that is left out.
        """
        rest = more_outputs or {}
        outputs = (output, *("" if other.startswith("-") else other for other in rest))
        self.nodes.append(Node(op_type, tuple(inputs), outputs, attributes, domain, name or output, kind, self.layer))
        for other, other_shape in rest.items():
            if not other.startswith("-"):
                self._tensor(other, element_type, other_shape)
        return self._tensor(output, element_type, shape)

    def as_float(self, name: str) -> str:
        """The tensor in float32: itself or a Cast of it (onnxruntime casts constants once, when it loads)."""
        if self.types[name] is ElementType.FLOAT:
            return name
        return self.node("Cast", (name,), f"{name}.float32", self.shapes[name], to=int(ElementType.FLOAT))

    def width(self, name: str) -> int:
        """Give the last dimension of a tensor that has a number there."""
        width = self.shapes[name][-1]
        assert isinstance(width, int)
        return width

    def scaled(self, name: str, source: str, factor: float) -> str:
        """Multiply a float32 tensor by a number; one that is multiplied by 1 stays itself."""
        if factor == 1:
            return source
        return self.node(
            "Mul", (source, self.constant(f"{name}.factor", np.array(factor, np.float32))), name, self.shapes[source]
        )

    def split(self, source: str, widths: Mapping[str, int]) -> tuple[str, ...]:
        """Split the last axis of a float32 tensor into parts of these names and widths."""
        sizes = self.constant(f"{source}.widths", np.array([*widths.values()], np.int64))
        first, *rest = ((name, (*self.shapes[source][:-1], width)) for name, width in widths.items())
        self.node("Split", (source, sizes), *first, more_outputs=dict(rest), axis=-1)
        return (*widths,)

    def graph(self, name: str) -> Graph:
        """The finished graph."""
        return Graph(
            name=name,
            nodes=tuple(self.nodes),
            inputs=tuple(self.inputs),
            outputs=tuple(self.outputs),
            initializers=self.initializers,
            opsets=OPSETS,
            types=self.types,
            shapes=self.shapes,
        )

    def _tensor(self, name: str, element_type: ElementType, shape: Shape) -> str:
        self.types[name] = element_type
        self.shapes[name] = shape
        return name
