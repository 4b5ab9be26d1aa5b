"""Take the branches of `If` that are decided before a model runs, so that what is in them is seen and offloaded."""

from collections.abc import Callable, Mapping
from dataclasses import replace

from hybrid.graph.graph import Graph, Initializer, Node
from hybrid.graph.rename import renamed_graph

Decide = Callable[[Graph, str], bool | None]  # a graph and a condition in it: what it is, None where that is open


def with_branches_taken(graph: Graph, decide: Decide) -> Graph:
    """The graph with every `If` replaced by the branch that `decide` chooses, those inside of branches too.

    An `If` that is open stays, and so do those in its branches.
    """
    while True:
        taken = _once(graph, decide)
        if taken is graph:
            return graph
        graph = taken


def pruned(graph: Graph, outputs: tuple[str, ...]) -> Graph:
    """The graph with these outputs, and without what they don't need; inputs stay."""
    needed = set(outputs)
    nodes: list[Node] = []
    for node in reversed(graph.nodes):
        if needed.intersection(node.outputs):
            nodes.append(node)
            needed.update(node.reads)
    infos = {info.name: info for info in graph.outputs}
    return replace(
        graph,
        nodes=tuple(nodes[::-1]),
        outputs=tuple(infos[name] for name in outputs),
        initializers={name: i for name, i in graph.initializers.items() if name in needed},
    )


def _once(graph: Graph, decide: Decide) -> Graph:
    """The graph with the outermost decided branches taken; the same object where there are none."""
    used = dict.fromkeys((*graph.initializers, *graph.producers, *(info.name for info in graph.inputs)), 1)
    nodes: list[Node] = []
    initializers = dict(graph.initializers)
    found = False
    for node in graph.nodes:
        decided = decide(graph, node.inputs[0]) if (node.domain, node.op_type) == ("", "If") else None
        if decided is None:
            nodes.append(node)
            continue
        found = True
        body = _without_clashes(node.bodies["then_branch" if decided else "else_branch"], used)
        moved, constants = _inlined(body, node.outputs)
        nodes.extend(moved)
        initializers |= constants
    return replace(graph, nodes=tuple(nodes), initializers=initializers) if found else graph


def _without_clashes(body: Graph, used: dict[str, int]) -> Graph:
    """The body with names of its own that the graph around it does not use.

    `used` has those, and how often each was wanted; the body's are added.
    """
    names = {}
    for name in (*body.initializers, *body.producers):
        fresh = name
        while fresh in used:
            used[name] += 1
            fresh = f"{name}#{used[name]}"
        names[name] = fresh
        used[fresh] = 1
    return renamed_graph(body, names)


def _inlined(body: Graph, outputs: tuple[str, ...]) -> tuple[tuple[Node, ...], Mapping[str, Initializer]]:
    """The nodes and constants of a branch that write the outputs of its node."""
    names: dict[str, str] = {}
    copies = []
    for info, output in zip(body.outputs, outputs, strict=True):
        is_own = info.name in body.producers or info.name in body.initializers
        if is_own and info.name not in names and output:
            names[info.name] = output
        elif output:  # of a tensor of the graph around, or one that is given twice
            copies.append(Node("Identity", (info.name,), (output,), name=f"{output}/copy"))
    body = renamed_graph(replace(body, nodes=(*body.nodes, *copies)), names)
    return body.nodes, body.initializers
