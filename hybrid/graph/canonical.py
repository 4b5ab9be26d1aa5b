"""Islands under canonical names, so that the same island of every layer is one session.

A session that runs once a layer stays in the processor's caches; one session a layer would be cold every time,
since the weights of a step pass through the caches in between. Parameters (norm weights, biases) become inputs.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from hybrid.graph.graph import ElementType, Initializer, TensorInfo
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
        island = _with_casts_done(island)
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


def _with_casts_done(island: Island) -> Island:
    """Convert half parameters that are cast to float once, now, instead of in every step."""
    initializers = {initializer.name: initializer for initializer in island.initializers}
    nodes = []
    for node in island.nodes:
        source = initializers.get(node.inputs[0]) if node.op_type == "Cast" else None
        if source is None or not _is_parameter(source) or node.attributes["to"] != ElementType.FLOAT:
            nodes.append(node)
            continue
        converted = Initializer(node.outputs[0], ElementType.FLOAT, source.shape, _as_float32(source))
        initializers[converted.name] = converted
    read = {name for node in nodes for name in node.reads}
    return replace(island, nodes=tuple(nodes), initializers=tuple(i for i in initializers.values() if i.name in read))


def _as_float32(initializer: Initializer) -> np.ndarray:  # type: ignore[type-arg]
    stored = initializer.array()
    if initializer.element_type is ElementType.BFLOAT16:
        return (stored.astype(np.uint32) << 16).view(np.float32)
    return stored.astype(np.float32)


def _number(names: Iterable[str]) -> dict[str, str]:
    return {name: f"t{number}" for number, name in enumerate(dict.fromkeys(names))}


def _renamed_info(info: TensorInfo, names: Mapping[str, str], dims: Mapping[str, str]) -> TensorInfo:
    if info.shape is None:
        return replace(info, name=names[info.name])
    shape = tuple(dims[dim] if isinstance(dim, str) else dim for dim in info.shape)
    return replace(info, name=names[info.name], shape=shape)
