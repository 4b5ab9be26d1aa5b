"""The check of an ONNX model before anything reads it: names, order, operators, tensors and bodies.

What passes can be read without a guard: every name is known, every node has the inputs and attributes that its
operator needs, of the types that it needs, and nodes stand in running order.
"""

import functools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import onnx
import onnx.defs

from hybrid.errors import ModelFileError, UnsupportedModelError
from hybrid.graph.graph import ElementType, Graph, Shape
from hybrid.shown import show
from offload.spec.units import counted

_FLOAT, _INT, _STRING, _TENSOR, _GRAPH = (
    onnx.AttributeProto.FLOAT,
    onnx.AttributeProto.INT,
    onnx.AttributeProto.STRING,
    onnx.AttributeProto.TENSOR,
    onnx.AttributeProto.GRAPH,
)
_KNOWN_ATTRIBUTES = {
    *(_FLOAT, _INT, _STRING, _TENSOR, _GRAPH),
    *(onnx.AttributeProto.FLOATS, onnx.AttributeProto.INTS, onnx.AttributeProto.STRINGS),
    onnx.AttributeProto.TYPE_PROTO,
}
_STANDARD = ("", "ai.onnx")

_MAX_NODES = 1 << 19  # the largest exports have some tens of thousands
_MAX_BODY_DEPTH = 8
_MAX_RANK = 32
_MAX_DIM = 1 << 40
_MAX_TENSOR_BYTES = 1 << 44
_MAX_MADE_BYTES = 1 << 28
_MAX_OPSET = 1 << 16
_MAX_WIDTH = 1 << 31  # rows and columns of a block-quantised weight
_MAX_HEADS = 1 << 14
_MAX_TOKENS = 1 << 31


@dataclass(frozen=True)
class _Number:
    """A number that an attribute must be."""

    least: int = -(2**63)
    most: int = 2**63 - 1
    required: bool = False
    kind: int = _INT


@dataclass(frozen=True)
class _Needs:
    """The needs of an operator outside the standard: how many inputs and outputs, and which numbers."""

    inputs: int
    attributes: Mapping[str, _Number]
    outputs: int = 1


# Of query, key, value, past key and value, lengths, total length, cosines, sines and positions.
_ATTENTION_RANKS = (3, 3, 3, 4, 4, None, None, 2, 2, 2)

_WHOLE, _RATIO = _Number(), _Number(kind=_FLOAT)
_HEADS = _Number(1, _MAX_HEADS, required=True)
_ELEMENT_TYPE = _Number(1, max(ElementType), required=True)
# Operators that readers look into and onnx itself does not describe; Cast, for its values.
_NEEDS = {
    "Cast": _Needs(1, {"to": _ELEMENT_TYPE}),
    "FusedMatMul": _Needs(
        2, dict.fromkeys(("transA", "transB", "transBatchA", "transBatchB"), _WHOLE) | {"alpha": _RATIO}
    ),
    "GatherBlockQuantized": _Needs(3, {"block_size": _WHOLE, "bits": _WHOLE}),
    "GroupQueryAttention": _Needs(
        7,
        {
            "num_heads": _HEADS,
            "kv_num_heads": _HEADS,
            "local_window_size": _Number(-1, _MAX_TOKENS),
            "scale": _RATIO,
            "softcap": _RATIO,
            **dict.fromkeys(("do_rotary", "rotary_interleaved", "smooth_softmax", "qk_output"), _WHOLE),
        },
    ),
    "MatMulNBits": _Needs(
        3,
        {
            "K": _Number(1, _MAX_WIDTH, required=True),
            "N": _Number(1, _MAX_WIDTH, required=True),
            "bits": _Number(1, 8),
            "block_size": _Number(1, _MAX_WIDTH, required=True),
            "accuracy_level": _WHOLE,
            "weight_prepacked": _WHOLE,
        },
    ),
    "MultiHeadAttention": _Needs(1, {"num_heads": _HEADS}),
}
# In com.microsoft too: readers know these by name, and take them for their standard namesakes.
_LIKE_STANDARD = {
    *("DequantizeLinear", "QuantizeLinear", "Gather", "Gemm", "Identity", "MatMul", "MatMulInteger", "Transpose"),
    *("CastLike", "ConstantOfShape", "DynamicQuantizeLinear", "Softmax", "TopK", "Where"),
}


def validate(model: onnx.ModelProto, path: Path) -> None:
    """Check a model, bodies included, and put its nodes in running order, in place.

    Raises ModelFileError for one that cannot be, UnsupportedModelError for local functions and sparse tensors.
    """
    if not model.graph.node:
        raise ModelFileError(f"{path}: holds no graph")
    if model.functions:
        raise UnsupportedModelError(f"{path}: has {len(model.functions)} local functions; export it with them inlined")
    opsets = {opset.domain: opset.version for opset in model.opset_import}
    for domain, version in opsets.items():
        if not isinstance(domain, str):
            raise ModelFileError(f"{path}: the domain of an opset is not UTF-8 text")
        if not 1 <= version <= _MAX_OPSET:
            raise ModelFileError(f"{path}: opset {version} of domain {show(domain)} must be from 1 to {_MAX_OPSET}")
    opset = max((opsets[domain] for domain in _STANDARD if domain in opsets), default=onnx.defs.onnx_opset_version())
    missing = _Check(str(path), min(opset, onnx.defs.onnx_opset_version())).graph(model.graph, 0)
    if missing:
        name, reader = next(iter(missing.items()))
        raise ModelFileError(f"{reader} reads {show(name)}, which nothing gives")


def check_ranks(graph: Graph, path: Path) -> None:
    """Refuse an attention of tensors with too few or too many dimensions: onnxruntime does not, and aborts the process.

    What is known of shapes is compared. Raises ModelFileError.
    """
    known: dict[str, Shape | None] = {name: weight.shape for name, weight in graph.initializers.items()}
    known |= graph.shapes
    for node in graph.nodes:
        if node.op_type != "GroupQueryAttention":
            continue
        for number, (name, rank) in enumerate(zip(node.inputs, _ATTENTION_RANKS, strict=False)):
            shape = known.get(name)
            if rank is not None and shape is not None and len(shape) != rank:
                where = f"{path}: node {show(node.name or node.op_type)}: input {number + 1}, {show(name)}"
                raise ModelFileError(f"{where}, is {list(shape)}, must have {counted(rank, 'dimension')}")


def check_sizes(graph: Graph, path: Path) -> None:
    """Refuse a small file whose nodes make huge tensors: filled, counted or stretched out of a few numbers.

    Shapes that depend on the tokens of a step count with their fixed dimensions. Raises ModelFileError.
    """
    most = max(_MAX_MADE_BYTES, 4 * sum(initializer.nbytes for initializer in graph.initializers.values()))
    constants = 0
    for node in graph.nodes:
        for name in node.outputs:
            element_type = graph.types.get(name, ElementType.FLOAT)
            shape = graph.shapes.get(name)
            nbytes = prod(dim for dim in shape if isinstance(dim, int)) * element_type.bits // 8 if shape else 0
            constants += nbytes if name in graph.constants else 0
            if max(nbytes, constants) > most:
                raise ModelFileError(
                    f"{path}: node {show(node.name or node.op_type)} makes a tensor of {list(shape or ())}:"
                    f" {counted(max(nbytes, constants), 'byte')}, more than the {most:,} that a model of its size may"
                )


class _Check:
    """The check of one file, of standard operators at one version."""

    def __init__(self, path: str, opset: int) -> None:
        self._path = path
        self._opset = opset
        self._nodes = 0

    def graph(self, graph: onnx.GraphProto, depth: int) -> dict[str, str]:
        """Check a graph or body, order its nodes, and give the outer names that it reads, each with a reader."""
        if depth > _MAX_BODY_DEPTH:
            raise ModelFileError(f"{self._path}: bodies nest more than {_MAX_BODY_DEPTH} deep")
        if graph.sparse_initializer:
            raise UnsupportedModelError(f"{self._path}: has sparse initializers; store them densely")
        self._text(graph)
        own = self._given(graph)
        made = self._made(graph, own)
        reads = []
        for number, node in enumerate(graph.node):
            where = f"{self._path}: node {show(node.name or number)} ({show(node.op_type)})"
            captured = self._node(node, where, depth)
            reads.append({name: where for name in node.input if name} | captured)
        _put_in_order(graph, reads, made, self._path)
        ends = {info.name: f"{self._path}: the end of the graph" for info in graph.output}
        free = {name: reader for read in [*reads, ends] for name, reader in read.items()}
        return {name: reader for name, reader in free.items() if name not in own and name not in made}

    def _text(self, graph: onnx.GraphProto) -> None:
        """Refuse names that are not UTF-8, which protobuf gives as bytes."""
        infos = (*graph.input, *graph.output)
        tensors = list(graph.initializer)
        names = [graph.name, *(info.name for info in infos)]
        names += [dim.dim_param for info in infos for dim in info.type.tensor_type.shape.dim]
        for node in graph.node:
            names += [node.op_type, node.domain, node.name, *node.input, *node.output]
            names += [attribute.name for attribute in node.attribute]
            tensors += [attribute.t for attribute in node.attribute if attribute.type == _TENSOR]
        for tensor in tensors:
            names += [tensor.name, *(text for entry in tensor.external_data for text in (entry.key, entry.value))]
        if not all(isinstance(name, str) for name in names):
            raise ModelFileError(f"{self._path}: a name is not UTF-8 text")

    def _given(self, graph: onnx.GraphProto) -> set[str]:
        """The names of inputs and initializers, each checked."""
        inputs, weights = [info.name for info in graph.input], [tensor.name for tensor in graph.initializer]
        for kind, names in (("input", inputs), ("output", [o.name for o in graph.output]), ("tensor", weights)):
            self._unique(kind, names)
        for tensor in graph.initializer:
            self._tensor(tensor, f"{self._path}: tensor {show(tensor.name)}")
        for info in (*graph.input, *graph.output):
            self._info(info)
        return {*inputs, *weights}

    def _unique(self, kind: str, names: Sequence[str]) -> None:
        if not all(names):
            raise ModelFileError(f"{self._path}: {kind} {names.index('') + 1} has no name")
        if len(set(names)) < len(names):
            raise ModelFileError(f"{self._path}: {kind} {show(Counter(names).most_common(1)[0][0])} is there twice")

    def _made(self, graph: onnx.GraphProto, given: AbstractSet[str]) -> dict[str, int]:
        """The number of the node that makes each name: one node, and nothing else."""
        self._nodes += len(graph.node)
        if self._nodes > _MAX_NODES:
            raise ModelFileError(
                f"{self._path}: {counted(self._nodes, 'node')}, more than the {_MAX_NODES:,} a model may have"
            )
        made: dict[str, int] = {}
        for number, node in enumerate(graph.node):
            if not any(node.output):
                raise ModelFileError(f"{self._path}: node {show(node.name or number)} makes nothing")
            for name in filter(None, node.output):
                if name in made or name in given:
                    raise ModelFileError(f"{self._path}: {show(name)} is made twice")
                made[name] = number
        return made

    def _node(self, node: onnx.NodeProto, where: str, depth: int) -> dict[str, str]:
        """Check one node; gives the names that its bodies read."""
        attributes = {attribute.name: attribute for attribute in node.attribute}
        if len(attributes) < len(node.attribute):
            raise ModelFileError(f"{where}: has an attribute twice")
        captured: dict[str, str] = {}
        for name, attribute in attributes.items():
            if attribute.type not in _KNOWN_ATTRIBUTES or attribute.ref_attr_name:
                raise ModelFileError(f"{where}: attribute {show(name)} is of no known type")
            if attribute.type == _TENSOR:
                self._tensor(attribute.t, f"{where}: attribute {show(name)}")
            elif attribute.type == _GRAPH:
                captured |= self.graph(attribute.g, depth + 1)
        self._operator(node, attributes, where)
        return captured

    def _operator(self, node: onnx.NodeProto, attributes: Mapping[str, onnx.AttributeProto], where: str) -> None:
        """Check that a node has what its operator needs."""
        schema = None
        if node.domain in _STANDARD or node.op_type in _LIKE_STANDARD:
            schema = _schema(node.op_type, self._opset)
        if schema is not None:
            _check_schema(schema, node, attributes, where)
        if node.op_type == "Constant" and node.domain in _STANDARD and len(attributes) != 1:
            raise ModelFileError(
                f"{where}: has {counted(len(attributes), 'attribute')}, must have the one that is its value"
            )
        for name in ("then_branch", "else_branch") if node.op_type == "If" else ():
            given = len(attributes[name].g.output) if name in attributes else 0
            if given != len(node.output):
                raise ModelFileError(f"{where}: {name} gives {counted(given, 'output')}, must give {len(node.output)}")
        needs = _NEEDS.get(node.op_type)
        if needs is None:
            needs = _Needs(0, {name: _HEADS for name in ("num_heads",) if name in attributes})
        if len(node.input) < needs.inputs or (needs.inputs and not node.input[0]):
            raise ModelFileError(f"{where}: has {counted(len(node.input), 'input')}, needs {needs.inputs}")
        for name, number in needs.attributes.items():
            if name in attributes:
                _check_number(attributes[name], number, where)
            elif number.required:
                raise ModelFileError(f"{where}: attribute {name} is missing")
        if node.op_type == "GroupQueryAttention" and attributes["num_heads"].i % attributes["kv_num_heads"].i:
            raise ModelFileError(
                f"{where}: kv_num_heads is {attributes['kv_num_heads'].i}, must divide num_heads,"
                f" {attributes['num_heads'].i}"
            )

    def _tensor(self, tensor: onnx.TensorProto, where: str) -> None:
        """Check type and shape; the bytes are compared with them where they are read."""
        try:
            element_type = ElementType(tensor.data_type)
        except ValueError:
            raise ModelFileError(f"{where}: unknown element type {tensor.data_type}") from None
        self._dims(tensor.dims, where)
        nbytes = prod(tensor.dims) * element_type.bits // 8
        if nbytes > _MAX_TENSOR_BYTES:
            raise ModelFileError(
                f"{where}: {counted(nbytes, 'byte')}, more than the {_MAX_TENSOR_BYTES:,} a tensor may have"
            )

    def _info(self, info: onnx.ValueInfoProto) -> None:
        where = f"{self._path}: {show(info.name)}"
        tensor = info.type.tensor_type
        if tensor.elem_type not in ElementType.__members__.values():
            raise ModelFileError(f"{where}: unknown element type {tensor.elem_type}")
        # Some exporters write -1 for a dimension that they do not know.
        self._dims([max(dim.dim_value, 0) if dim.dim_value == -1 else dim.dim_value for dim in tensor.shape.dim], where)

    def _dims(self, dims: Sequence[int], where: str) -> None:
        if len(dims) > _MAX_RANK:
            raise ModelFileError(
                f"{where}: {counted(len(dims), 'dimension')}, more than the {_MAX_RANK} a tensor may have"
            )
        if any(dim < 0 for dim in dims):
            raise ModelFileError(f"{where}: negative dimension in {list(dims)}")
        if any(dim > _MAX_DIM for dim in dims):
            raise ModelFileError(f"{where}: dimension above {_MAX_DIM} in {list(dims)}")


def _put_in_order(graph: onnx.GraphProto, reads: Sequence[Iterable[str]], made: Mapping[str, int], where: str) -> None:
    """Put nodes behind those whose results they read, as onnxruntime does. Raises ModelFileError for a circle."""
    waits = [{made[name] for name in names if name in made} for names in reads]
    if all(max(before, default=-1) < number for number, before in enumerate(waits)):
        return
    readers: dict[int, list[int]] = {}
    for number, before in enumerate(waits):
        for other in before:
            readers.setdefault(other, []).append(number)
    left = [len(before) for before in waits]
    order = [number for number, count in enumerate(left) if not count]
    for number in order:  # grows as it is walked
        for reader in readers.get(number, ()):
            left[reader] -= 1
            if not left[reader]:
                order.append(reader)
    if len(order) < len(left):
        node = graph.node[next(number for number, count in enumerate(left) if count)]
        raise ModelFileError(f"{where}: node {show(node.name or node.op_type)} waits for its own result")
    nodes = [graph.node[number] for number in order]
    ordered = onnx.GraphProto(node=nodes)
    del graph.node[:]
    graph.node.extend(ordered.node)


@functools.cache
def _schema(op_type: str, opset: int) -> Any:
    """Find onnx's definition of a standard operator, or None: onnxruntime has a few of its own there."""
    try:
        return onnx.defs.get_schema(op_type, opset, "")
    except onnx.defs.SchemaError:
        return None


def _check_schema(schema: Any, node: onnx.NodeProto, attributes: Mapping[str, onnx.AttributeProto], where: str) -> None:
    for kind, names, least, most, formal in (
        ("inputs", node.input, schema.min_input, schema.max_input, schema.inputs),
        ("outputs", node.output, schema.min_output, schema.max_output, schema.outputs),
    ):
        if not least <= len(names) <= most:
            bound = f"needs {least}" if len(names) < least else f"takes {most}"
            raise ModelFileError(f"{where}: has {len(names)} {kind}, {bound}")
        for name, parameter in zip(names, formal, strict=False):
            if not name and parameter.option == onnx.defs.OpSchema.FormalParameterOption.Single:
                raise ModelFileError(f"{where}: leaves out {parameter.name}, which {node.op_type} needs")
    for name, described in schema.attributes.items():
        if name not in attributes:
            if described.required:
                raise ModelFileError(f"{where}: attribute {name} is missing")
        elif attributes[name].type != described.type.value:
            raise ModelFileError(f"{where}: attribute {name} must be of type {described.type.name}")


def _check_number(attribute: onnx.AttributeProto, number: _Number, where: str) -> None:
    if attribute.type != number.kind:
        raise ModelFileError(f"{where}: attribute {attribute.name} must be a number")
    if number.kind == _INT and not number.least <= attribute.i <= number.most:
        raise ModelFileError(
            f"{where}: attribute {attribute.name} is {attribute.i}, must be from {number.least} to {number.most}"
        )
