"""Find every static matmul of a graph: `Graph` to `Linear`s."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod

from hybrid.graph.graph import ElementType, Graph, Initializer, Node
from offload.spec.linear import BLOCKS, Activations, BlockFormat, Layout, LinearSpec, WeightFormat
from offload.storage.stored_weight import StoredWeight

_FLOAT_FORMATS = {
    ElementType.FLOAT: WeightFormat.FP32,
    ElementType.FLOAT16: WeightFormat.FP16,
    ElementType.BFLOAT16: WeightFormat.BF16,
}
_QUANTISED_BITS = {
    ElementType.INT4: WeightFormat.INT4,
    ElementType.UINT4: WeightFormat.INT4,
    ElementType.INT8: WeightFormat.INT8,
    ElementType.UINT8: WeightFormat.INT8,
}
_ROUNDING_LEVEL = 4  # the accuracy_level of MatMulNBits at which activations are rounded to int8
_NUMBER = re.compile(r"(?<![a-zA-Z0-9])\d+(?![a-zA-Z0-9])")  # of a layer or a node; "fc1" is a name


@dataclass(frozen=True)
class Linear:
    """A static matmul in its graph: the node, what it reads and writes, and its weight.

    `weights` are the initializers that store its weight, behind any Transpose and Cast: those of `StoredWeight`, or
    the codes alone where only onnxruntime multiplies them. `bias` is the third input of a Gemm or the sixth of a
    MatMulNBits.
    """

    spec: LinearSpec
    node: Node
    input: str
    output: str
    weights: tuple[str, ...]
    bias: str = ""


@dataclass(frozen=True)
class _Constant:
    initializer: Initializer
    transposed: bool
    scale_bytes: int = 0  # of the scales and zero points of a DequantizeLinear


_Constants = Mapping[str, _Constant]


def find_linears(graph: Graph) -> tuple[Linear, ...]:
    """Every static matmul, in running order. Those that must stay on the CPU say why in `host_only_reason`."""
    weights = _stored_weights(graph)
    found = [linear for node in graph.nodes if (linear := _as_linear(graph, node, weights)) is not None]
    return _with_kinds(found)


def stored_weight(graph: Graph, linear: Linear) -> StoredWeight:
    """The weight of a Linear where it lies. Raises ValueError for one that only onnxruntime multiplies."""
    spec = linear.spec
    wanted = spec.storage.arrays(spec.in_features, spec.out_features)
    arrays = [
        graph.initializers[name].stored().reshape(*array.shape)
        for name, array in zip(linear.weights, wanted, strict=True)
    ]
    return StoredWeight(spec.storage, spec.in_features, tuple(arrays))


def _as_linear(graph: Graph, node: Node, weights: _Constants) -> Linear | None:
    match node.domain, node.op_type:
        case ("", "MatMul") | ("com.microsoft", "FusedMatMul"):
            return _matmul(graph, node, weights)
        case "", "Gemm":
            return _gemm(graph, node, weights)
        case "com.microsoft", "MatMulNBits":
            return _matmul_nbits(graph, node)
        case "", "MatMulInteger":
            return _matmul_integer(graph, node, weights)
    return None


def _matmul(graph: Graph, node: Node, weights: _Constants) -> Linear | None:
    stored = weights.get(node.inputs[1])
    if stored is None or node.inputs[0] in graph.constants:
        return None
    plain = node.attributes.get("transA", 0) == 0 and node.attributes.get("alpha", 1.0) == 1.0
    batch = node.attributes.get("transBatchA", 0) or node.attributes.get("transBatchB", 0)
    if not plain or batch:
        return _linear(graph, node, stored, False, host_only="a FusedMatMul with scaling or batch transposition")
    return _linear(graph, node, stored, bool(node.attributes.get("transB", 0)))


def _gemm(graph: Graph, node: Node, weights: _Constants) -> Linear | None:
    stored = weights.get(node.inputs[1])
    if stored is None or node.inputs[0] in graph.constants:
        return None
    factors = (
        node.attributes.get("alpha", 1.0),
        node.attributes.get("beta", 1.0),
        node.attributes.get("transA", 0),
    )
    host_only = "" if factors == (1.0, 1.0, 0) else "a Gemm with alpha, beta or transA"
    linear = _linear(graph, node, stored, bool(node.attributes.get("transB", 0)), host_only=host_only)
    bias = node.inputs[2] if len(node.inputs) > 2 else ""
    return replace(linear, bias=bias)


def _matmul_nbits(graph: Graph, node: Node) -> Linear | None:
    weight = graph.initializers.get(node.inputs[1])
    if weight is None:
        return None
    read = [graph.initializers[name] for name in node.inputs[1:5] if name in graph.initializers]
    bits, in_features = int(node.attributes.get("bits", 4)), int(node.attributes["K"])
    blocks = _stored_blocks(graph, node, bits)
    rounds = int(node.attributes.get("accuracy_level", 0)) == _ROUNDING_LEVEL
    spec = LinearSpec(
        name=node.name or node.outputs[0],
        in_features=in_features,
        out_features=int(node.attributes["N"]),
        format=WeightFormat.INT8 if bits == 8 else WeightFormat.INT4,
        layout=Layout.NK,
        weight_bytes=sum(initializer.nbytes for initializer in read),
        kind="",
        layer="",
        group=f"{node.inputs[0]} {bits}-bit blocks of {node.attributes.get('block_size')}",
        host_only_reason="" if blocks else f"{bits}-bit blocks like these are multiplied by onnxruntime only",
        blocks=blocks,
        activations=Activations.INT8 if rounds else Activations.FLOAT,
    )
    scales, zero_points, _, bias = (*node.inputs[2:], "", "", "", "")[:4]
    names = (weight.name, scales, zero_points) if blocks else (weight.name,)
    return Linear(spec, node, node.inputs[0], node.outputs[0], tuple(filter(None, names)), bias)


def _stored_blocks(graph: Graph, node: Node, bits: int) -> BlockFormat | None:
    """Give the block format of a MatMulNBits weight; None where our kernels cannot multiply it."""
    weight, scales, zero_points, order = (*node.inputs[1:], "", "", "")[:4]
    block, columns = int(node.attributes.get("block_size", 0)), int(node.attributes["N"])
    if bits not in (4, 8) or block not in BLOCKS or order or node.attributes.get("weight_prepacked", 0):
        return None
    blocks = -(-int(node.attributes["K"]) // block)
    halves = (ElementType.FLOAT, ElementType.FLOAT16)
    wanted = [(weight, (ElementType.UINT8,), columns * blocks * block * bits // 8), (scales, halves, columns * blocks)]
    if zero_points:
        wanted.append((zero_points, (ElementType.UINT8,), columns * -(-blocks * bits // 8)))
    for name, types, count in wanted:
        initializer = graph.initializers.get(name)
        if initializer is None or initializer.element_type not in types or prod(initializer.shape) != count:
            return None
    return BlockFormat(bits, block, _FLOAT_FORMATS[graph.initializers[scales].element_type], bool(zero_points))


def _matmul_integer(graph: Graph, node: Node, weights: _Constants) -> Linear | None:
    stored = weights.get(node.inputs[1])
    if stored is None:
        return None
    return _linear(graph, node, stored, False, host_only="MatMulInteger (dynamically quantised) runs on the CPU only")


def _linear(graph: Graph, node: Node, stored: _Constant, transposed: bool, host_only: str = "") -> Linear:
    initializer = stored.initializer
    nk = stored.transposed != transposed
    rows, columns = initializer.shape
    weight_format = _FLOAT_FORMATS.get(initializer.element_type) or _QUANTISED_BITS[initializer.element_type]
    if not weight_format.is_float and not host_only:
        host_only = f"{weight_format} with DequantizeLinear is multiplied on the CPU only"
    layout = Layout.NK if nk else Layout.KN
    spec = LinearSpec(
        name=node.name or node.outputs[0],
        in_features=columns if nk else rows,
        out_features=rows if nk else columns,
        format=weight_format,
        layout=layout,
        weight_bytes=initializer.nbytes + stored.scale_bytes,
        kind="",
        layer="",
        group=f"{node.inputs[0]} {weight_format} {layout}",
        host_only_reason=host_only,
    )
    return Linear(spec, node, node.inputs[0], node.outputs[0], (initializer.name,))


def _stored_weights(graph: Graph) -> dict[str, _Constant]:
    """The constant matrices by their names, and by those of their Transpose, Cast, Identity and DequantizeLinear."""
    found = {}
    for name, initializer in graph.initializers.items():
        known = initializer.element_type in _FLOAT_FORMATS or initializer.element_type in _QUANTISED_BITS
        if len(initializer.shape) == 2 and known and 0 not in initializer.shape:
            found[name] = _Constant(initializer, transposed=False)
    for node in graph.nodes:
        stored = found.get(node.inputs[0]) if node.inputs else None
        if stored is None:
            continue
        match node.op_type:
            case "Identity":
                found[node.outputs[0]] = stored
            case "Cast" if graph.types.get(node.outputs[0]) is ElementType.FLOAT:
                # A half weight that is multiplied in fp32 is multiplied exactly by our kernels too.
                found[node.outputs[0]] = stored
            case "Transpose" if node.attributes.get("perm", [1, 0]) == [1, 0]:
                found[node.outputs[0]] = replace(stored, transposed=not stored.transposed)
            case "DequantizeLinear":
                scales = sum(graph.initializers[name].nbytes for name in node.inputs[1:] if name in graph.initializers)
                found[node.outputs[0]] = replace(stored, scale_bytes=stored.scale_bytes or scales)
    return found


def _with_kinds(found: Sequence[Linear]) -> tuple[Linear, ...]:
    """Give each Linear a unique name, its kind and its layer; kinds of several shapes are told apart by shape."""
    names = _unique_names(found)
    kinds = [linear.node.kind or _kind_of(name) for linear, name in zip(found, names, strict=True)]
    shapes: dict[str, set[tuple[int, int]]] = {}
    for kind, linear in zip(kinds, found, strict=True):
        shapes.setdefault(kind, set()).add((linear.spec.in_features, linear.spec.out_features))
    counts = Counter(kinds)
    linears = []
    for linear, name, kind in zip(found, names, kinds, strict=True):
        spec = linear.spec
        shape = f" {spec.in_features}x{spec.out_features}" if len(shapes[kind]) > 1 else ""
        layer = _layer_of(linear.node, name, counts[kind])
        linears.append(replace(linear, spec=replace(spec, name=name, kind=kind + shape, layer=layer)))
    return tuple(linears)


def _kind_of(name: str) -> str:
    """The projection's own name: "/model/layers.3/self_attn/q_proj/MatMul" and its twins give "q_proj"."""
    words = [word for word in re.split(r"[/.]", _NUMBER.sub("", name)) if word]
    projections = [word for word in words if not word.lower().startswith(("matmul", "gemm"))]
    return (projections or words or [name])[-1]


def _layer_of(node: Node, name: str, alike: int) -> str:
    """The layer that the builder says; otherwise the first number in the name of a Linear that is one of several."""
    if node.kind:
        return "" if node.layer is None else str(node.layer)
    numbers = _NUMBER.findall(name)
    return numbers[0] if numbers and alike > 1 else ""


def _unique_names(found: Iterable[Linear]) -> list[str]:
    names: dict[str, None] = {}
    counts: Counter[str] = Counter()
    for linear in found:
        name = linear.spec.name
        while name in names:
            counts[linear.spec.name] += 1
            name = f"{linear.spec.name}#{counts[linear.spec.name] + 1}"
        names[name] = None
    return list(names)
