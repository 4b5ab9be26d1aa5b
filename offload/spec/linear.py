"""The nouns of placement: a Linear, how its weight is stored, and ranges of its output columns."""

from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from typing import NamedTuple

import numpy as np


class WeightFormat(StrEnum):
    """The types in which the elements of a weight are stored."""

    FP32 = "fp32"
    FP16 = "fp16"
    BF16 = "bf16"
    INT8 = "int8"
    INT4 = "int4"

    @property
    def is_float(self) -> bool:
        """True for the formats that are multiplied as they are stored."""
        return self in (WeightFormat.FP32, WeightFormat.FP16, WeightFormat.BF16)

    @property
    def itemsize_bytes(self) -> int:
        """Bytes of one element; int4 has none."""
        return self.storage_dtype.itemsize

    @property
    def storage_dtype(self) -> np.dtype[np.generic]:
        """The numpy dtype that holds an element; bf16 has none of its own and is kept as uint16."""
        return _DTYPES[self]


_DTYPES: dict[WeightFormat, np.dtype[np.generic]] = {
    WeightFormat.FP32: np.dtype("float32"),
    WeightFormat.FP16: np.dtype("float16"),
    WeightFormat.BF16: np.dtype("uint16"),
    WeightFormat.INT8: np.dtype("uint8"),
}


class Activations(StrEnum):
    """The precision of x when it meets block-quantised weights."""

    INT8 = "int8"  # rounded to int8 block by block, as accuracy_level 4 of MatMulNBits has it: fast
    FLOAT = "float"  # as it is


BLOCKS = (16, 32, 64, 128, 256)  # elements of K that may share a scale
REQUANTISED_BLOCK = 64  # those that do in weights that are quantised on load


class Layout(StrEnum):
    """The order of a weight in memory, K = in_features and N = out_features; both row-major."""

    KN = "KN"  # y = x @ W, as ONNX MatMul stores it: a column is strided
    NK = "NK"  # y = x @ W.T, as torch.nn.Linear stores it: a column is contiguous


class ArraySpec(NamedTuple):
    """One of the arrays that store a weight."""

    name: str
    dtype: np.dtype[np.generic]
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Dense:
    """Describes how a weight of floats is stored: as one matrix."""

    format: WeightFormat
    layout: Layout

    def __post_init__(self) -> None:
        """Raises ValueError for a format whose elements are no numbers by themselves."""
        if not self.format.is_float:
            raise ValueError(f"weights of format {self.format} are stored in blocks")

    def arrays(self, in_features: int, out_features: int) -> tuple[ArraySpec, ...]:
        """The matrix of a weight of this size."""
        shape = (in_features, out_features) if self.layout is Layout.KN else (out_features, in_features)
        return (ArraySpec("weight", self.format.storage_dtype, shape),)

    def column_bytes(self, in_features: int) -> int:
        """Bytes of one column."""
        return in_features * self.format.itemsize_bytes


@dataclass(frozen=True)
class BlockFormat:
    """Describes how a block-quantised weight is stored, as ONNX's MatMulNBits has it.

    Element k of column n is (code - zero point) * scale; each block of K has a scale and a zero point, which is 8
    (int4) or 128 (int8) where none are stored. Codes and zero points are unsigned; of two int4 in a byte the low half
    is the first. What the last block has beyond K is read and counts nothing.
    """

    bits: int
    block: int  # elements of K that share a scale
    scales: WeightFormat  # FP16 or FP32
    zeros: bool = False  # whether there are zero points

    def __post_init__(self) -> None:
        """Raises ValueError for what no kernel reads."""
        if self.bits not in (4, 8) or self.scales not in (WeightFormat.FP16, WeightFormat.FP32):
            raise ValueError(f"no kernel multiplies {self.bits}-bit blocks with {self.scales} scales")
        if self.block not in BLOCKS:
            raise ValueError(f"blocks of {self.block} are none of {', '.join(map(str, BLOCKS))}")

    @classmethod
    @cache
    def made_on_load(cls, weight_format: WeightFormat) -> "BlockFormat":
        """That of float weights which are quantised to int8 or int4 on load."""
        bits = {WeightFormat.INT8: 8, WeightFormat.INT4: 4}[weight_format]
        return cls(bits, REQUANTISED_BLOCK, WeightFormat.FP16)

    @property
    def format(self) -> WeightFormat:
        """int8 or int4."""
        return WeightFormat.INT8 if self.bits == 8 else WeightFormat.INT4

    @property
    def layout(self) -> Layout:
        """NK: every array has a row for each column."""
        return Layout.NK

    def arrays(self, in_features: int, out_features: int) -> tuple[ArraySpec, ...]:
        """Codes, scales and zero points, where there are any, of a weight of this size."""
        n, blocks, byte = out_features, self.blocks(in_features), np.dtype(np.uint8)
        codes = ArraySpec("codes", byte, (n, blocks, self.block * self.bits // 8))
        scales = ArraySpec("scales", self.scales.storage_dtype, (n, blocks))
        zeros = ArraySpec("zero points", byte, (n, self.zero_bytes(in_features)))
        return (codes, scales, zeros) if self.zeros else (codes, scales)

    def blocks(self, in_features: int) -> int:
        """Blocks of one column; the last is padded."""
        return -(-in_features // self.block)

    def code_bytes(self, in_features: int) -> int:
        """Bytes of one column's codes."""
        return self.blocks(in_features) * self.block * self.bits // 8

    def scale_bytes(self, in_features: int) -> int:
        """Bytes of one column's scales."""
        return self.blocks(in_features) * self.scales.itemsize_bytes

    def zero_bytes(self, in_features: int) -> int:
        """Bytes of one column's packed zero points, 0 where there are none."""
        return -(-self.blocks(in_features) * self.bits // 8) if self.zeros else 0

    def column_bytes(self, in_features: int) -> int:
        """Bytes of one column, all included."""
        return self.code_bytes(in_features) + self.scale_bytes(in_features) + self.zero_bytes(in_features)


Storage = Dense | BlockFormat


@dataclass(frozen=True)
class ColumnRange:
    """Output columns `start <= column < stop` of one Linear."""

    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class LinearSpec:
    """One static matmul: y[M, out_features] = x[M, in_features] @ W.

    `kind` is equal for the same projection of every layer ("q_proj"), `layer` is an opaque label, and Linears
    with the same `group` read the same input at the same moment. `weight_bytes` counts everything a multiply
    has to read: the weight, and scales and zero points where there are any. Where our kernels can multiply a weight in
    blocks, `blocks` says how it is stored. `activations` is what x is rounded to where it meets blocks, be they stored
    or made on load.
    """

    name: str
    in_features: int
    out_features: int
    format: WeightFormat
    layout: Layout
    weight_bytes: int
    kind: str
    layer: str
    group: str
    host_only_reason: str = ""  # not empty: why this Linear cannot leave the CPU
    blocks: BlockFormat | None = None
    activations: Activations = Activations.INT8

    @property
    def storage(self) -> Storage:
        """How its weight is stored. Raises ValueError for one that only onnxruntime multiplies."""
        return self.blocks or Dense(self.format, self.layout)

    @property
    def is_quantisable(self) -> bool:
        """Tell whether columns on the host can be quantised on load."""
        return self.format.is_float and not self.host_only_reason

    @property
    def column_bytes(self) -> float:
        """Bytes of one output column."""
        return self.weight_bytes / self.out_features
