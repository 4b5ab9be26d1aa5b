"""Weights block-quantised to int8 or int4, as ONNX's MatMulNBits stores them and as we quantise on load."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from offload.spec.arrays import HostArray
from offload.spec.linear import BLOCKS, BlockFormat, WeightFormat


@dataclass(frozen=True, eq=False)
class QuantisedWeight:
    """W[K, N]; element k of column n is (q - zero point) * scale, each block of K has a scale and a zero point.

    `packed` is uint8 [N, blocks, block * bits / 8]: unsigned, of two int4 in a byte the low half is the first.
    `scales` is float32 or float16 [N, blocks]; `zero_points` uint8 [N, ceil(blocks * bits / 8)], packed likewise, or
    None for 8 (int4) or 128 (int8). All are C-contiguous; none need be aligned. `in_features` is K; what the last
    block has beyond it is read and counts nothing.
    """

    packed: HostArray
    scales: HostArray
    zero_points: HostArray | None
    format: WeightFormat
    in_features: int

    def __post_init__(self) -> None:
        if self.format not in _BITS:
            raise ValueError(f"a quantised weight is int8 or int4, not {self.format}")
        if self.packed.ndim != 3 or self.packed.dtype != np.uint8 or 0 in self.packed.shape:
            raise ValueError(
                f"packed weights are uint8 [N, blocks, bytes], not {self.packed.dtype}{list(self.packed.shape)}"
            )
        if self.block not in BLOCKS:
            raise ValueError(f"blocks of {self.block} are none of {', '.join(map(str, BLOCKS))}")
        if self.blocks != -(-self.in_features // self.block):
            raise ValueError(f"{self.blocks} blocks of {self.block} do not make {self.in_features} input features")
        if self.scales.dtype not in (np.float32, np.float16) or self.scales.shape != self.packed.shape[:2]:
            wanted = f"float32 or float16 {list(self.packed.shape[:2])}"
            raise ValueError(f"scales must be {wanted}, not {self.scales.dtype}{list(self.scales.shape)}")
        zeros, shape = self.zero_points, (self.out_features, -(-self.blocks * self.bits // 8))
        if zeros is not None and (zeros.dtype != np.uint8 or zeros.shape != shape):
            raise ValueError(f"zero points must be uint8 {list(shape)}, not {zeros.dtype}{list(zeros.shape)}")
        for name, array in zip(("packed weights", "scales", "zero points"), self.arrays, strict=False):
            if not array.flags.c_contiguous:
                raise ValueError(f"{name} must be C-contiguous, not strided by {list(array.strides)} bytes")

    @property
    def bits(self) -> int:
        """Bits of one element."""
        return _BITS[self.format]

    @property
    def blocked(self) -> BlockFormat:
        """Describe how it is stored."""
        scales = WeightFormat.FP16 if self.scales.dtype == np.float16 else WeightFormat.FP32
        return BlockFormat(self.bits, self.block, scales, self.zero_points is not None)

    @property
    def block(self) -> int:
        """Elements of K that share a scale."""
        return int(self.packed.shape[2]) * 8 // self.bits

    @property
    def blocks(self) -> int:
        """Blocks of a column."""
        return int(self.packed.shape[1])

    @property
    def out_features(self) -> int:
        """N."""
        return int(self.packed.shape[0])

    @property
    def shape(self) -> tuple[int, int]:
        """[N, K], as a float weight of layout NK has it."""
        return self.out_features, self.in_features

    @property
    def arrays(self) -> tuple[HostArray, ...]:
        """Weights, scales and zero points, where there are any; a row of each for every column."""
        return (self.packed, self.scales) if self.zero_points is None else (self.packed, self.scales, self.zero_points)

    def with_arrays(self, arrays: Sequence[HostArray]) -> "QuantisedWeight":
        """The same columns, or others of that kind, in other `arrays`."""
        packed, scales, *zeros = arrays
        return QuantisedWeight(packed, scales, zeros[0] if zeros else None, self.format, self.in_features)

    @property
    def nbytes(self) -> int:
        """Bytes of weights, scales and zero points."""
        return sum(array.nbytes for array in self.arrays)

    def columns(self, start: int, stop: int) -> "QuantisedWeight":
        """Output columns `start <= n < stop`, without a copy. Raises ValueError for a range that is not there."""
        if not 0 <= start < stop <= self.out_features:
            raise ValueError(f"columns {start}:{stop} are not among {self.out_features}")
        return self.with_arrays([array[start:stop] for array in self.arrays])


_BITS = {WeightFormat.INT8: 8, WeightFormat.INT4: 4}
