"""Islands under canonical names, so that the same island of every layer is one session.

A session that runs once a layer stays in the processor's caches; one session a layer would be cold every time,
since the weights of a step pass through the caches in between. Parameters (norm weights, biases) become inputs.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from hybrid.graph.graph import ElementType, Initializer, Node, TensorInfo
from hybrid.graph.program import Island
from hybrid.graph.rename import names_in, renamed

_PARAMETER_TYPES = (ElementType.FLOAT, ElementType.FLOAT16, ElementType.BFLOAT16)
_LEAST_PARAMETER_BYTES = 128  # smaller ones are factors and bounds, which onnxruntime folds into its kernels


@dataclass(frozen=True, eq=False)
class CanonicalIsland:
    """An island in canonical names. `names` leads from its own names to these; `parameters` are by canonical name."""

    island: Island
    names: Mapping[str, str]
    parameters: Mapping[str, Initializer]


def canonical(island: Island) -> CanonicalIsland:
    """Rename an island; take its parameters out, unless it multiplies weights that onnxruntime wants to prepack."""
    if not (island.has_matmul or island.dequantises):
        island = _with_parameters_computed(island)
    parameters = [] if island.has_matmul or island.dequantises else list(filter(_is_parameter, island.initializers))
    taken = {parameter.name for parameter in parameters}
    infos = [TensorInfo(p.name, p.element_type, p.shape) for p in parameters]
    names = _number(
        [
            *(info.name for info in (*island.inputs, *infos)),
            *(name for node in island.nodes for name in names_in(node)),
        ]
    )
    # Exporters number sizes that they do not know through the whole graph, so that every layer has names of its own.
    known = (info.shape for info in (*island.inputs, *island.outputs) if info.shape is not None)
    dims = _number(dim for shape in known for dim in shape if isinstance(dim, str))
    part = Island(
        name=island.name,
        nodes=tuple(replace(renamed(node, names), name=f"n{number}") for number, node in enumerate(island.nodes)),
        inputs=tuple(_renamed_info(info, names, dims) for info in (*island.inputs, *infos)),
        outputs=tuple(_renamed_info(info, names, dims) for info in island.outputs),
        initializers=tuple(replace(i, name=names[i.name]) for i in island.initializers if i.name not in taken),
        has_matmul=island.has_matmul,
        dequantises=island.dequantises,
    )
    return CanonicalIsland(part, names, {names[p.name]: p for p in parameters})


def _is_parameter(initializer: Initializer) -> bool:
    return initializer.element_type in _PARAMETER_TYPES and initializer.nbytes >= _LEAST_PARAMETER_BYTES


def _with_parameters_computed(island: Island) -> Island:
    """Compute what is made of parameters alone (casts to float, sums) once, now, instead of in every step."""
    initializers = {initializer.name: initializer for initializer in island.initializers}
    nodes = []
    for node in island.nodes:
        computed = _computed(node, [initializers.get(name) for name in node.inputs])
        if computed is None:
            nodes.append(node)
        else:
            initializers[node.outputs[0]] = Initializer(node.outputs[0], ElementType.FLOAT, computed.shape, computed)
    read = {name for node in nodes for name in node.reads}
    return replace(island, nodes=tuple(nodes), initializers=tuple(i for i in initializers.values() if i.name in read))


def _computed(node: Node, sources: Sequence[Initializer | None]) -> npt.NDArray[np.float32] | None:
    """What the node makes of a parameter, in float; None for one that does anything else."""
    known = [source for source in sources if source is not None]
    if len(known) < len(sources) or not any(map(_is_parameter, known)):
        return None
    if node.op_type == "Cast" and node.attributes["to"] == ElementType.FLOAT:
        return _as_float32(known[0])
    if node.op_type == "Add" and all(source.element_type is ElementType.FLOAT for source in known):
        return _as_float32(known[0]) + _as_float32(known[1])
    return None


def _as_float32(initializer: Initializer) -> npt.NDArray[np.float32]:
    stored = initializer.array()
    if initializer.element_type is ElementType.BFLOAT16:
        stored = (stored.astype(np.uint32) << 16).view(np.float32)
    return np.asarray(stored, np.float32)


def _number(names: Iterable[str]) -> dict[str, str]:
    return {name: f"t{number}" for number, name in enumerate(dict.fromkeys(names))}


def _renamed_info(info: TensorInfo, names: Mapping[str, str], dims: Mapping[str, str]) -> TensorInfo:
    if info.shape is None:
        return replace(info, name=names[info.name])
    shape = tuple(dims[dim] if isinstance(dim, str) else dim for dim in info.shape)
    return replace(info, name=names[info.name], shape=shape)
