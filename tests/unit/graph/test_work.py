"""Graphs of twice the nodes take twice the work, whatever hangs on what."""

from collections.abc import Callable
from itertools import pairwise

import pytest

from hybrid.graph.branches import with_branches_taken
from hybrid.graph.cut import cut
from hybrid.graph.find import find_linears
from hybrid.graph.graph import ElementType, Graph, Initializer, Node, TensorInfo
from tests.work import lines_run

FLOAT = ElementType.FLOAT
SIZES = (60, 120)
NEAR = 2.2  # of twice the size


def graph_of(nodes: list[Node]) -> Graph:
    weights = {name: Initializer(name, FLOAT, (8, 8), None) for name in ("w", "b")}
    x = TensorInfo("x", FLOAT, (1, "S", 8))
    types = dict.fromkeys(("x", *weights, *(output for node in nodes for output in node.outputs)), FLOAT)
    return Graph("g", tuple(nodes), (x,), (TensorInfo(nodes[-1].outputs[0], FLOAT, None),), weights, {"": 21}, types)


def chain(length: int, weight: str = "w") -> list[Node]:
    """Linears one after the other, an Add of a computed constant behind each."""
    nodes = []
    before = "x"
    for number in range(length):
        nodes += [
            Node("Neg", ("b",), (f"c{number}",)),
            Node("MatMul", (before, weight), (f"y{number}",)),
            Node("Add", (f"y{number}", f"c{number}"), (f"h{number}",)),
        ]
        before = f"h{number}"
    return nodes


def behind_identities(length: int) -> list[Node]:
    """Linears whose weight lies behind as many Identities."""
    names = ["w", *(f"w{number}" for number in range(length))]
    identities = [Node("Identity", (a,), (b,)) for a, b in pairwise(names)]
    return [*identities, *chain(length, names[-1])]


def branches(length: int) -> list[Node]:
    """Conditional nodes one after the other, whose bodies use the same names."""
    body = Graph("b", (Node("Neg", ("x",), ("t",)),), (), (TensorInfo("t", FLOAT, None),), {}, {})
    more = Graph("b", (Node("Neg", ("x",), ("u",)), *body.nodes), (), body.outputs, {}, {})
    attributes = {"then_branch": more, "else_branch": body}
    return [Node("If", ("x",), (f"i{number}",), attributes) for number in range(length)]


def cut_whole(graph: Graph) -> object:
    return cut(graph, find_linears(graph))


def take_branches(graph: Graph) -> object:
    return with_branches_taken(graph, lambda graph, condition: True)


@pytest.mark.parametrize(
    ("make", "work"),
    [(chain, cut_whole), (behind_identities, find_linears), (branches, take_branches)],
    ids=["cut", "find", "branches"],
)
def test_work_grows_with_the_graph(make: Callable[[int], list[Node]], work: Callable[[Graph], object]) -> None:
    small, large = (graph_of(make(length)) for length in SIZES)
    work(graph_of(make(1)))  # what is imported late
    assert lines_run(lambda: work(large)) < NEAR * lines_run(lambda: work(small))
