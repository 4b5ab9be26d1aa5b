"""The layer of each Linear, as the graph has it: names of exported nodes seldom say it."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

from hybrid.graph.decoder import CachePair
from hybrid.graph.find import Linear
from hybrid.graph.program import Program
from hybrid.graph.stages import attends


def with_layers(linears: Sequence[Linear], program: Program, cache: Sequence[CachePair]) -> tuple[Linear, ...]:
    """Say which layer the Linears outside onnxruntime belong to; those that say it already, and others, keep theirs.

    Where their kinds are in one layer only, or twice in one, names say nothing, and the kind is the place in the layer.
    """
    layers = _layers(program, cache)
    found = {linear.spec.name: layers.get(linear.spec.name) for linear in linears if not linear.node.kind}
    kinds = [(found[q.spec.name], q.spec.kind) for q in linears if found.get(q.spec.name)]
    are_counts = len({kind for _, kind in kinds}) == len(kinds) and len({layer for layer, _ in kinds}) > 1
    nameless = are_counts or len(set(kinds)) < len(kinds)
    places: Counter[str] = Counter()
    named = []
    for linear in linears:
        layer = found.get(linear.spec.name)
        if layer is not None:
            places[layer] += 1
            kind = f"linear {places[layer]}" if nameless and layer else linear.spec.kind
            linear = replace(linear, spec=replace(linear.spec, layer=layer, kind=kind))
        named.append(linear)
    return tuple(named)


def _layers(program: Program, cache: Sequence[CachePair]) -> dict[str, str]:
    """The layer of every outside Linear, "" for those before the first layer and after the last.

    A layer begins with the Linears whose outputs its attention reads: the last ones before it. The last layer has as
    many levels as the one before it; of a single layer, all but the very last.
    """
    levels = [[linear.name for linear in level.linears] for level in program.levels]
    filled = [number for number, names in enumerate(levels) if names]
    attended = [number for number, level in enumerate(program.levels) if attends(level, cache)]
    before = [[place for place, number in enumerate(filled) if number < at] for at in attended]
    starts = sorted({places[-1] for places in before if places})
    if not starts:
        return {}
    sizes = [after - start for start, after in pairwise(starts)]
    end = starts[-1] + (sizes[-1] if sizes else max(1, len(filled) - starts[-1] - 1))
    found: dict[str, str] = {}
    for place, number in enumerate(filled):
        layer = sum(start <= place for start in starts) - 1
        found |= dict.fromkeys(levels[number], str(layer) if starts[0] <= place < end else "")
    return found
