"""int8 and int4 weights as onnxruntime multiplies them: the operator that quantised models have."""

import numpy as np

from hybrid.graph.cut import cut
from hybrid.graph.graph import ElementType, Initializer
from hybrid.model.builders.writer import MICROSOFT, GraphWriter
from hybrid.runtime.island import IslandBinding, load_islands, value_of
from offload.host_calibration import ROWS, Multiplier
from offload.specs import REQUANTISED_BLOCK, WeightFormat

_BITS = {WeightFormat.INT8: 8, WeightFormat.INT4: 4}
_INT8_ACTIVATIONS = 4  # the accuracy level of the fast kernels, and of what exporters write


class QuantisedMultiplier:
    """A weight of `nbytes` bytes or a little less in blocks of 64, each with an fp32 scale, on `threads` threads."""

    def __init__(self, weight_format: WeightFormat, nbytes: int, in_features: int, threads: int) -> None:
        blocks = in_features // REQUANTISED_BLOCK
        block_bytes = REQUANTISED_BLOCK * _BITS[weight_format] // 8
        columns = nbytes // (blocks * (block_bytes + 4))
        weight = np.full((columns, blocks, block_bytes), 0x35, np.uint8)
        scales = np.full(columns * blocks, 0.01, np.float32)
        initializers = (
            Initializer("weight", ElementType.UINT8, weight.shape, weight),
            Initializer("scales", ElementType.FLOAT, scales.shape, scales),
        )
        writer = GraphWriter({initializer.name: initializer for initializer in initializers})
        writer.input("x", ElementType.FLOAT, ("S", in_features))
        writer.node(
            "MatMulNBits",
            ("x", "weight", "scales"),
            "y",
            ("S", columns),
            domain=MICROSOFT,
            accuracy_level=_INT8_ACTIVATIONS,
            K=in_features,
            N=columns,
            bits=_BITS[weight_format],
            block_size=REQUANTISED_BLOCK,
        )
        writer.output("y")
        (island,) = load_islands(cut(writer.graph("multiply"), ()), threads)
        assert island is not None
        self.nbytes = weight.nbytes + scales.nbytes
        self._bindings: dict[int, IslandBinding] = {}
        for rows in ROWS:
            self._bindings[rows] = binding = island.bind()
            binding.feed("x", value_of(np.ones((rows, in_features), np.float32), ElementType.FLOAT))
            binding.write_to("y", value_of(np.zeros((rows, columns), np.float32), ElementType.FLOAT))

    def multiply(self, rows: int) -> None:
        """See `offload.host_calibration.Multiplier`."""
        self._bindings[rows].run()


def quantised_multipliers(nbytes: int, in_features: int, threads: int) -> dict[WeightFormat, Multiplier]:
    """An int8 and an int4 weight of `nbytes` bytes each; onnxruntime keeps a copy in an order of its own."""
    return {name: QuantisedMultiplier(name, nbytes, in_features, threads) for name in _BITS}
