"""Cut a graph by levels: `Graph` + the Linears to run outside -> `Program`.

A node's level is the largest level of its inputs, plus one when that input comes out of a Linear that is run
outside onnxruntime. All CPU nodes of one level are one island; all outside Linears of one level run together.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace

from hybrid.errors import UnsupportedModelError
from hybrid.graph.find import Linear
from hybrid.graph.graph import ElementType, Graph, Initializer, Node, TensorInfo
from hybrid.graph.program import Island, Level, OutsideLinear, Program

_LINEAR = "hybrid.Linear"  # the op type that stands for an outside Linear while the graph is cut
_SHARED_CONSTANT_BYTES = 16 * 1024
_FLOATS = (ElementType.FLOAT, ElementType.FLOAT16, ElementType.BFLOAT16)
_WEIGHT_OPS = ("MatMul", "FusedMatMul", "Gemm", "MatMulNBits", "MatMulInteger")


def cut(graph: Graph, outside: Sequence[Linear]) -> Program:
    """Cut `graph` so that the Linears of `outside` run between islands.

    Where an outside Linear works on float16 activations, Casts at the edges of the islands keep what passes
    between stages in float32. Requires that every tensor between islands has a known element type.
    """
    graph = _with_linears_outside(graph, outside)
    constant = graph.constants
    live = _live_nodes(graph)
    levels = _levels(graph, [node for node in live if not constant.issuperset(node.outputs)])
    parts: dict[int, list[Node]] = {}
    linears: dict[int, list[OutsideLinear]] = {}
    specs = {linear.spec.name: linear.spec for linear in outside}
    for node, level in levels:
        if node.op_type == _LINEAR:
            spec = specs[node.name]
            entry = OutsideLinear(spec.name, spec.group, node.inputs[0], node.outputs[0], spec.out_features)
            linears.setdefault(level, []).append(entry)
        else:
            parts.setdefault(level, []).append(node)
    islands = {level: _with_constant_nodes(graph, nodes, constant) for level, nodes in parts.items()}
    shared = _shared_constants(graph, islands)
    produced_at = {output: level for node, level in levels for output in node.outputs if output}
    read_later = _read_outside(graph, islands, linears, produced_at)
    count = 1 + max([*islands, *linears], default=-1)
    return Program(
        graph=graph,
        levels=tuple(
            Level(
                _island(graph, f"island {level}", islands[level], constant, shared, read_later)
                if level in islands
                else None,
                tuple(linears.get(level, ())),
            )
            for level in range(count)
        ),
        constants=shared,
    )


def _with_linears_outside(graph: Graph, outside: Sequence[Linear]) -> Graph:
    """Replace each node of `outside` by a stand-in between float32 tensors, with Casts where the graph is half."""
    by_node = {id(linear.node): linear for linear in outside}
    types, shapes = dict(graph.types), dict(graph.shapes)
    nodes: list[Node] = []
    cast_inputs: dict[str, str] = {}

    def alias(name: str, suffix: str, element_type: ElementType) -> str:
        new = f"{name}/{suffix}"
        types[new] = element_type
        if name in shapes:
            shapes[new] = shapes[name]
        return new

    for node in graph.nodes:
        linear = by_node.get(id(node))
        if linear is None:
            nodes.append(node)
            continue
        source = linear.input
        if types[source] is not ElementType.FLOAT:
            if source not in cast_inputs:
                cast_inputs[source] = alias(source, "float", ElementType.FLOAT)
                nodes.append(_cast(source, cast_inputs[source], ElementType.FLOAT))
            source = cast_inputs[source]
        product = linear.output
        tail: list[Node] = []
        if linear.bias:
            biased, product = product, alias(product, "unbiased", types[linear.output])
            tail.append(Node("Add", (product, linear.bias), (biased,), name=f"{linear.spec.name}/bias"))
        if types[product] is not ElementType.FLOAT:
            half, product = product, alias(product, "float", ElementType.FLOAT)
            tail.insert(0, _cast(product, half, types[half]))
        if source in shapes:
            shapes.setdefault(product, (*shapes[source][:-1], linear.spec.out_features))
        nodes.append(Node(_LINEAR, (source,), (product,), name=linear.spec.name))
        nodes.extend(tail)
    return replace(graph, nodes=tuple(nodes), types=types, shapes=shapes)


def _cast(source: str, target: str, element_type: ElementType) -> Node:
    return Node("Cast", (source,), (target,), {"to": int(element_type)}, name=f"{target}/cast")


def _live_nodes(graph: Graph) -> list[Node]:
    """The nodes that some output depends on, in order."""
    needed = {info.name for info in graph.outputs}
    live = []
    for node in reversed(graph.nodes):
        if needed.intersection(node.outputs):
            live.append(node)
            needed.update(node.reads)
    return live[::-1]


def _levels(graph: Graph, nodes: Iterable[Node]) -> list[tuple[Node, int]]:
    ready: dict[str, int] = {}  # the level from which on a tensor can be read
    levels = []
    for node in nodes:
        level = max((ready.get(name, 0) for name in node.reads), default=0)
        levels.append((node, level))
        after = level + 1 if node.op_type == _LINEAR else level
        ready |= dict.fromkeys(node.outputs, after)
    return levels


def _with_constant_nodes(graph: Graph, nodes: Sequence[Node], constant: Collection[str]) -> list[Node]:
    """`nodes` with the nodes before them that compute their constants."""
    wanted = {name for node in nodes for name in node.reads if name in constant}
    own: list[Node] = []
    for node in reversed(graph.nodes):
        if wanted.intersection(node.outputs) and not graph.initializers.keys() >= set(node.outputs):
            own.append(node)
            wanted.update(node.reads)
    return own[::-1] + list(nodes)


def _shared_constants(graph: Graph, islands: Mapping[int, Sequence[Node]]) -> dict[str, Initializer]:
    """Large float initializers that several islands read: held once and fed, not copied into each session."""
    readers: dict[str, set[int]] = {}
    for level, nodes in islands.items():
        for node in nodes:
            for name in node.reads:
                if name in graph.initializers:
                    readers.setdefault(name, set()).add(level)
    return {
        name: graph.initializers[name]
        for name, levels in readers.items()
        if len(levels) > 1
        and graph.initializers[name].nbytes >= _SHARED_CONSTANT_BYTES
        and graph.initializers[name].element_type in _FLOATS
    }


def _read_outside(
    graph: Graph,
    islands: Mapping[int, Sequence[Node]],
    linears: Mapping[int, Sequence[OutsideLinear]],
    produced_at: Mapping[str, int],
) -> set[str]:
    """Tensors that leave the island they are made in."""
    outside = {info.name for info in graph.outputs} | {linear.input for group in linears.values() for linear in group}
    for level, nodes in islands.items():
        outside.update(name for node in nodes for name in node.reads if produced_at.get(name, level) != level)
    return outside


def _island(
    graph: Graph,
    name: str,
    nodes: Sequence[Node],
    constant: Collection[str],
    shared: Collection[str],
    read_later: Collection[str],
) -> Island:
    made = {output for node in nodes for output in node.outputs if output}
    reads = list(dict.fromkeys(read for node in nodes for read in node.reads))
    own = [read for read in reads if read in graph.initializers and read not in shared]
    fed = [read for read in reads if read not in made and read not in own]
    given = [output for node in nodes for output in node.outputs if output in read_later]
    initializers = tuple(graph.initializers[read] for read in own)
    return Island(
        name=name,
        nodes=tuple(nodes),
        inputs=tuple(_info(graph, tensor) for tensor in fed),
        outputs=tuple(_info(graph, tensor) for tensor in given),
        initializers=initializers,
        has_matmul=any(node.op_type in _WEIGHT_OPS and node.inputs[1] in constant for node in nodes),
        dequantises=any(node.op_type == "DequantizeLinear" for node in nodes),
    )


def _info(graph: Graph, name: str) -> TensorInfo:
    if name not in graph.types:
        raise UnsupportedModelError(f"{graph.name}: the element type of tensor {name!r} cannot be told")
    return TensorInfo(name, graph.types[name], graph.shapes.get(name))
