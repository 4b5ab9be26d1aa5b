"""A large decoder whose Linears are block-quantised to int4: all zero, in sparse files that take no disk."""

from dataclasses import replace
from pathlib import Path

from hybrid.graph.find import Linear, find_linears
from hybrid.graph.graph import ElementType, Initializer, Node
from hybrid.loading.opened_model import OpenedModel, open_for_run, opened_model
from hybrid.loading.settings import RunSettings
from hybrid.tune.zero_model import ZeroShape, write_zero_model
from offload.storage.weight_file import FileRange, WeightFile

_BLOCK = 32


def open_zero_blocks(folder: Path, shape: ZeroShape) -> OpenedModel:
    """Write the model into `folder`, which is made, and open it."""
    opened = open_for_run(RunSettings(model=write_zero_model(folder, shape)))
    graph = opened.decoder.graph
    path, end = folder / "blocks", 0
    nodes: dict[str, Node] = {}
    places: dict[str, int] = {}
    floats = {name for linear in opened.linears for name in linear.weights}
    initializers = {name: tensor for name, tensor in graph.initializers.items() if name not in floats}
    for linear in opened.linears:
        nodes[linear.node.outputs[0]] = node = _matmul_nbits(linear)
        n, blocks = linear.spec.out_features, linear.spec.in_features // _BLOCK
        for name, kind, *dims in (
            (node.inputs[1], ElementType.UINT8, n, blocks, _BLOCK // 2),
            (node.inputs[2], ElementType.FLOAT, n * blocks),
        ):
            tensor = Initializer(name, kind, tuple(dims), None)
            initializers[name] = tensor
            places[name] = end
            end += tensor.nbytes
    with path.open("wb") as file:
        file.truncate(end)
    there = WeightFile.at(path)
    for name, offset in places.items():
        tensor = initializers[name]
        initializers[name] = replace(tensor, source=FileRange(there, offset, tensor.nbytes))
    kept = tuple(
        nodes.get(node.outputs[0], node)
        for node in graph.nodes
        if node.outputs[0] in nodes or not floats & set(node.reads)
    )
    changed = replace(graph, nodes=kept, initializers=initializers)
    return opened_model(
        replace(opened.decoder, graph=changed),
        find_linears(changed),
        opened.context_tokens,
        opened.attentions,
        opened.host_format,
        opened.activations,
    )


def _matmul_nbits(linear: Linear) -> Node:
    name = linear.spec.name
    sizes = {"K": linear.spec.in_features, "N": linear.spec.out_features}
    return Node(
        "MatMulNBits",
        (linear.input, f"{name}.packed", f"{name}.scales"),
        (linear.output,),
        {**sizes, "bits": 4, "block_size": _BLOCK, "accuracy_level": 4},
        "com.microsoft",
        name,
    )
