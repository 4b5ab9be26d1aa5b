"""Branches that a graph takes by the length of the text: decided for good, or by the engine for a whole text.

Models that stretch their positions for long texts have two tables of cosines, and an `If` that chooses one by the
length so far. A prompt that is read in pieces would have its first pieces turned by the other table than one that is
read at once; so the choice is taken out of the graph, and becomes an input.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from hybrid.errors import UsageError
from hybrid.graph.branches import pruned, with_branches_taken
from hybrid.graph.decoder import Switch
from hybrid.graph.graph import ElementType, Graph, Initializer, Node, Shape, TensorInfo
from hybrid.graph.small_values import small_value
from hybrid.graph.step_feeds import FEEDS, feed
from offload.spec.units import counted

_SAMPLES = 16


def with_switches(graph: Graph, context_tokens: int) -> tuple[Graph, tuple[Switch, ...]]:
    """The graph for texts of up to `context_tokens`, and the inputs that it now has for branches by length.

    Branches that are the same for all such texts are taken. Types and shapes of the graph must be known; new inputs
    have theirs. Raises UsageError where a table is too short for the texts that it is for.
    """
    lengths: dict[str, int | bool | None] = {}

    def decide(graph: Graph, condition: str) -> bool | None:
        if condition not in lengths:
            lengths[condition] = _by_length(graph, condition, context_tokens)
        value = lengths[condition]
        return value if isinstance(value, bool) else None

    outputs = tuple(info.name for info in graph.outputs)
    graph = pruned(with_branches_taken(graph, decide), outputs)
    switches = []
    for node in graph.nodes:
        first = lengths.get(node.inputs[0]) if (node.domain, node.op_type) == ("", "If") else None
        if first is not None and not isinstance(first, bool):
            graph, switch = _taken_out(graph, node, first)
            _check_rows(switch, context_tokens)
            switches.append(switch)
    return pruned(graph, outputs), tuple(switches)


def _by_length(graph: Graph, condition: str, context_tokens: int) -> int | bool | None:
    """Evaluate a condition: one value for all texts, or the shortest text that it changes for; None where it depends
    on anything else than the length, or changes more than once.
    """
    first, last = _at(graph, condition, 1), _at(graph, condition, context_tokens)
    if first is None or last is None:
        return None
    low, high = 1, context_tokens  # of these, low is as the shortest text and high as the longest
    while first != last and high - low > 1:
        middle = (low + high) // 2
        value = _at(graph, condition, middle)
        if value is None:
            return None
        low, high = (middle, high) if value == first else (low, middle)
    samples = {1 + sample * (context_tokens - 1) // _SAMPLES for sample in range(_SAMPLES + 1)}
    if any(
        _at(graph, condition, total) is not (last if first == last or total >= high else first) for total in samples
    ):
        return None
    return first if first == last else high


def _at(graph: Graph, condition: str, total: int) -> bool | None:
    """Evaluate a condition in a text of `total` tokens; None where it depends on how the text is read, or unknown."""
    values = {_in_step(graph, condition, total, new) for new in (1, total)}
    return values.pop() if len(values) == 1 else None


def _in_step(graph: Graph, condition: str, total: int, new: int) -> bool | None:
    dims = {"S": new, "T": total, "P": total - new, "C": total}
    shapes: dict[str, tuple[int, ...]] = {}
    given: dict[str, npt.NDArray[Any]] = {}
    ids = range(new)
    for info in graph.inputs:
        if info.shape is not None:
            sizes = [dims.get(dim) if isinstance(dim, str) else dim for dim in info.shape]
            if all(size is not None for size in sizes) and "C" not in info.shape:
                shapes[info.name] = tuple(size or 0 for size in sizes)
        if info.name in FEEDS and info.name != "input_ids":
            array = feed(info.name, info.shape, ids, total - new)
            given[info.name] = array.astype(info.element_type.storage_dtype)
    value = small_value(graph, condition, given, shapes)
    return None if value is None or value.size != 1 else bool(value.reshape(-1)[0])


def _taken_out(graph: Graph, node: Node, first: int) -> tuple[Graph, Switch]:
    """The graph with inputs in place of an If: its outputs, where both branches are constants, else its condition."""
    then, other = node.bodies["then_branch"], node.bodies["else_branch"]
    long = _in_step(graph, node.inputs[0], first, 1)
    after, before = (then, other) if long else (other, then)
    if not after.nodes and not before.nodes and not after.captured and not before.captured:
        tables = [
            {
                name: replace(body.initializers[info.name], name=name)
                for name, info in zip(node.outputs, body.outputs, strict=True)
                if name
            }
            for body in (before, after)
        ]
        nodes = tuple(other for other in graph.nodes if other is not node)
        switch = Switch(first, *tables)
    else:
        name = f"{node.inputs[0]}/by length"
        values = [{name: Initializer(name, ElementType.BOOL, (), np.array(value))} for value in (not long, bool(long))]
        fed = replace(node, inputs=(name,))
        nodes = tuple(fed if other is node else other for other in graph.nodes)
        switch = Switch(first, *values)
    infos = [_info(switch.before[name], switch.after[name]) for name in switch.before]
    return _with_inputs(replace(graph, nodes=nodes), infos), switch


def _with_inputs(graph: Graph, infos: list[TensorInfo]) -> Graph:
    types: Mapping[str, ElementType] = {info.name: info.element_type for info in infos}
    shapes: Mapping[str, Shape] = {info.name: info.shape for info in infos if info.shape is not None}
    return replace(
        graph,
        inputs=(*graph.inputs, *infos),
        types={**graph.types, **types},
        shapes={**{name: shape for name, shape in graph.shapes.items() if name not in types}, **shapes},
    )


def _info(before: Initializer, after: Initializer) -> TensorInfo:
    """One input for two tensors; sizes that differ are left open."""
    if len(before.shape) != len(after.shape):
        return TensorInfo(after.name, after.element_type, None)
    shape = tuple(a if a == b else None for a, b in zip(before.shape, after.shape, strict=True))
    return TensorInfo(after.name, after.element_type, shape)


def _check_rows(switch: Switch, context_tokens: int) -> None:
    """Tables of a row for each position must reach as far as the texts they are for."""
    for tables, most in ((switch.before, switch.first - 1), (switch.after, context_tokens)):
        for name, table in tables.items():
            if len(table.shape) == 2 and table.shape[0] < most:
                raise UsageError(
                    f"a context of {counted(context_tokens, 'token')}: {name} has {counted(table.shape[0], 'row')} "
                    f"for texts of up to {most:,}; use --context {table.shape[0]}"
                )
