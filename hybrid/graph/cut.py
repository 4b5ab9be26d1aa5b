"""Cut a graph by levels: `Graph` + the Linears and attentions to run outside -> `Program`.

A node's level is the largest level of its inputs, plus one when that input comes out of an operator that is run
outside onnxruntime. All CPU nodes of one level are one island; all outside Linears of one level run together.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace

from hybrid.errors import UnsupportedModelError
from hybrid.graph.attention import Attention
from hybrid.graph.find import Linear
from hybrid.graph.graph import ElementType, Graph, Initializer, Node, TensorInfo
from hybrid.graph.program import Island, OutsideAttention, OutsideLinear, Program, ProgramLevel

_LINEAR = "hybrid.Linear"  # the op types that stand for outside operators while the graph is cut
_ATTENTION = "hybrid.Attention"
_SHARED_CONSTANT_BYTES = 16 * 1024
_FLOATS = (ElementType.FLOAT, ElementType.FLOAT16, ElementType.BFLOAT16)
_WEIGHT_OPS = ("MatMul", "FusedMatMul", "Gemm", "MatMulNBits", "MatMulInteger")


def cut(graph: Graph, outside: Sequence[Linear], outside_attentions: Sequence[Attention] = ()) -> Program:
    """Cut `graph` so that the Linears of `outside` and `outside_attentions` run between islands.

    Where one of them works on float16 activations, Casts at the edges of the islands keep what passes between stages
    in float32. Requires that every tensor between islands has a known element type.
    """
    graph, attended = _with_operators_outside(graph, outside, outside_attentions)
    constant = graph.constants
    live = _live_nodes(graph)
    levels = _levels(graph, [node for node in live if not constant.issuperset(node.outputs)])
    parts: dict[int, list[Node]] = {}
    linears: dict[int, list[OutsideLinear]] = {}
    attentions: dict[int, list[OutsideAttention]] = {}
    specs = {linear.spec.name: linear.spec for linear in outside}
    for node, level in levels:
        if node.op_type == _LINEAR:
            spec = specs[node.name]
            entry = OutsideLinear(spec.name, spec.group, node.inputs[0], node.outputs[0], spec.out_features)
            linears.setdefault(level, []).append(entry)
        elif node.op_type == _ATTENTION:
            attentions.setdefault(level, []).append(attended[node.outputs[0]])
        else:
            parts.setdefault(level, []).append(node)
    computing = _computing(graph)
    islands = {level: _with_constant_nodes(nodes, computing) for level, nodes in parts.items()}
    shared = _shared_constants(graph, islands)
    produced_at = {output: level for node, level in levels for output in node.outputs if output}
    read_outside = {linear.input for group in linears.values() for linear in group}
    read_outside |= {name for attention in attended.values() for name in attention.inputs}
    read_later = _read_later(graph, islands, read_outside, produced_at)
    count = 1 + max([*islands, *linears, *attentions], default=-1)
    return Program(
        graph=graph,
        levels=tuple(
            ProgramLevel(
                _island(graph, f"island {level}", islands[level], constant, shared, read_later)
                if level in islands
                else None,
                tuple(linears.get(level, ())),
                tuple(attentions.get(level, ())),
            )
            for level in range(count)
        ),
        constants=shared,
    )


def _with_operators_outside(
    graph: Graph, linears: Sequence[Linear], attentions: Sequence[Attention]
) -> tuple[Graph, dict[str, OutsideAttention]]:
    """The graph with stand-ins for outside operators; and the attentions by what they write."""
    operators: list[Linear | Attention] = [*linears, *attentions]
    by_node = {id(operator.node): operator for operator in operators}
    write = _StandIns(graph)
    attended = {}
    for node in graph.nodes:
        match by_node.get(id(node)):
            case Linear() as linear:
                write.linear(linear)
            case Attention() as attention:
                outside = write.attention(attention)
                attended[outside.output] = outside
            case None:
                write.nodes.append(node)
    return replace(graph, nodes=tuple(write.nodes), types=write.types, shapes=write.shapes), attended


class _StandIns:
    """Rewrites a graph: a stand-in between float32 tensors for each outside operator, Casts where the graph is half."""

    def __init__(self, graph: Graph) -> None:
        self.types, self.shapes = dict(graph.types), dict(graph.shapes)
        self.nodes: list[Node] = []
        self._floats: dict[str, str] = {}

    def linear(self, linear: Linear) -> None:
        """Add what stands for a Linear; a bias is added behind it."""
        source = self._as_float(linear.input)
        product = linear.output
        tail: list[Node] = []
        if linear.bias:
            biased, product = product, self._alias(product, "unbiased", self.types[linear.output])
            tail.append(Node("Add", (product, linear.bias), (biased,), name=f"{linear.spec.name}/bias"))
        product = self._from_float(product, tail)
        self._set_shape(product, source, linear.spec.out_features)
        self.nodes.append(Node(_LINEAR, (source,), (product,), name=linear.spec.name))
        self.nodes.extend(tail)

    def attention(self, attention: Attention) -> OutsideAttention:
        """Add what stands for an attention; gives it as it is now."""
        query, key, value = (
            self._as_float(name) if name else "" for name in (attention.query, attention.key, attention.value)
        )
        tail: list[Node] = []
        output = self._from_float(attention.output, tail)
        self._set_shape(output, query, attention.spec.num_heads * attention.spec.head_dim)
        node = attention.node
        outside = OutsideAttention(
            name=node.name or attention.output,
            spec=attention.spec,
            query=query,
            key=key,
            value=value,
            past_key=attention.past_key,
            past_value=attention.past_value,
            lengths=attention.lengths,
            cos=attention.cos,
            sin=attention.sin,
            output=output,
        )
        self.nodes.append(Node(_ATTENTION, outside.inputs, (output, *node.outputs[1:]), name=outside.name))
        self.nodes.extend(tail)
        return outside

    def _alias(self, name: str, suffix: str, element_type: ElementType) -> str:
        new = f"{name}/{suffix}"
        self.types[new] = element_type
        if name in self.shapes:
            self.shapes[new] = self.shapes[name]
        return new

    def _as_float(self, source: str) -> str:
        """`source` in float32: as an outside operator made it, else cast once for all its readers."""
        if self.types[source] is ElementType.FLOAT:
            return source
        if source not in self._floats:
            self._floats[source] = self._alias(source, "float", ElementType.FLOAT)
            self.nodes.append(_cast(source, self._floats[source], ElementType.FLOAT))
        return self._floats[source]

    def _from_float(self, target: str, tail: list[Node]) -> str:
        """The float32 tensor that `target` is made of; what makes it is put at the head of `tail`."""
        if self.types[target] is ElementType.FLOAT:
            return target
        source = self._floats[target] = self._alias(target, "float", ElementType.FLOAT)
        tail.insert(0, _cast(source, target, self.types[target]))
        return source

    def _set_shape(self, target: str, source: str, width: int) -> None:
        if source in self.shapes:
            self.shapes.setdefault(target, (*self.shapes[source][:-1], width))


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
        after = level + 1 if node.op_type in (_LINEAR, _ATTENTION) else level
        ready |= dict.fromkeys(node.outputs, after)
    return levels


def _with_constant_nodes(nodes: Sequence[Node], computing: Mapping[str, tuple[int, Node]]) -> list[Node]:
    """`nodes` with the nodes before them that compute their constants: `computing` has those, with their places."""
    own: dict[int, Node] = {}
    pending = [name for node in nodes for name in node.reads]
    while pending:
        found = computing.get(pending.pop())
        if found is not None and found[0] not in own:
            number, node = found
            own[number] = node
            pending.extend(node.reads)
    return [own[number] for number in sorted(own)] + list(nodes)


def _computing(graph: Graph) -> dict[str, tuple[int, Node]]:
    """The nodes that compute constants and their places among all, by what they write."""
    constant, initializers = graph.constants, graph.initializers.keys()
    return {
        output: (number, node)
        for number, node in enumerate(graph.nodes)
        if constant.issuperset(node.outputs) and not initializers >= set(node.outputs)
        for output in node.outputs
        if output
    }


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


def _read_later(
    graph: Graph, islands: Mapping[int, Sequence[Node]], read_outside: Collection[str], produced_at: Mapping[str, int]
) -> set[str]:
    """Tensors that leave the island they are made in: for outputs, outside operators and later islands."""
    leaving = {info.name for info in graph.outputs} | set(read_outside)
    for level, nodes in islands.items():
        leaving.update(name for node in nodes for name in node.reads if produced_at.get(name, level) != level)
    return leaving


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
