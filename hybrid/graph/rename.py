"""Rename tensors, those in the bodies of control flow included."""

from collections.abc import Iterator, Mapping
from dataclasses import replace

from hybrid.graph.graph import Graph, Node


def renamed(node: Node, names: Mapping[str, str]) -> Node:
    """The node with its tensors under new names; those that `names` does not have keep theirs.

    Requires that no two names of one scope become one.
    """
    return replace(
        node,
        inputs=tuple(names.get(name, name) for name in node.inputs),
        outputs=tuple(names.get(name, name) for name in node.outputs),
        attributes={**node.attributes, **{name: renamed_graph(body, names) for name, body in node.bodies.items()}},
    )


def renamed_graph(graph: Graph, names: Mapping[str, str]) -> Graph:
    """The graph, or the body of a node, with its tensors under new names; see `renamed`."""
    return replace(
        graph,
        nodes=tuple(renamed(node, names) for node in graph.nodes),
        inputs=tuple(replace(info, name=names.get(info.name, info.name)) for info in graph.inputs),
        outputs=tuple(replace(info, name=names.get(info.name, info.name)) for info in graph.outputs),
        initializers={
            names.get(name, name): replace(initializer, name=names.get(name, name))
            for name, initializer in graph.initializers.items()
        },
    )


def names_in(node: Node) -> Iterator[str]:
    """Every name that the node and its bodies give to a tensor or read, some of them more than once."""
    yield from (name for name in (*node.inputs, *node.outputs) if name)
    for body in node.bodies.values():
        yield from body.initializers
        yield from (info.name for info in (*body.inputs, *body.outputs))
        for inner in body.nodes:
            yield from names_in(inner)
