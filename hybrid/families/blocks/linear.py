"""Linears, as they are stored."""

from hybrid.families.blocks.writer import MICROSOFT, GraphWriter
from hybrid.graph.graph import Shape


def linear(
    write: GraphWriter, name: str, source: str, width: int, bias: bool = False, weight: str = "", output: str = ""
) -> str:
    """Write x W^T + b in float32, (1, S, in) to (1, S, width).

    A FusedMatMul with its weight as stored, [width, in], whatever its type; its output is float32 by contract. The
    node carries the name of the module, whose weight and output have that name too unless given.
    """
    weight, output = write.weight(weight or f"{name}.weight", (width, write.width(source))), output or name
    shape: Shape = (*write.shapes[source][:-1], width)
    product = f"{output}.matmul" if bias else output
    write.node(
        "FusedMatMul",
        (source, weight),
        product,
        shape,
        domain=MICROSOFT,
        name=name,
        kind=name.rpartition(".")[2],
        transB=1,
    )
    if not bias:
        return product
    addend = write.as_float(write.weight(f"{name}.bias", (width,)))
    return write.node("Add", (product, addend), output, shape, name=f"{name}.add_bias")
