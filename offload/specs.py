"""The nouns of placement: a Linear, its weight format, and ranges of its output columns."""

from dataclasses import dataclass
from enum import StrEnum

import numpy as np


class WeightFormat(StrEnum):
    """How the elements of a weight are stored."""

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
        """Bytes of one element of a float format."""
        return 4 if self is WeightFormat.FP32 else 2

    @property
    def storage_dtype(self) -> np.dtype[np.generic]:
        """The numpy dtype that holds a float format; bf16 has none of its own and is kept as uint16."""
        names = {WeightFormat.FP32: "float32", WeightFormat.FP16: "float16", WeightFormat.BF16: "uint16"}
        return np.dtype(names[self])


REQUANTISED_BLOCK = 64  # elements that share a scale in weights that are quantised on load
_SCALE_BYTES = 2


def requantised_column_bytes(weight_format: WeightFormat, in_features: int) -> int:
    """Bytes of one output column quantised on load: whole blocks of int8 or int4, an fp16 scale each."""
    blocks = -(-in_features // REQUANTISED_BLOCK)
    bits = {WeightFormat.INT8: 8, WeightFormat.INT4: 4}[weight_format]
    return blocks * (REQUANTISED_BLOCK * bits // 8 + _SCALE_BYTES)


class Layout(StrEnum):
    """The order of a weight in memory, K = in_features and N = out_features; both row-major."""

    KN = "KN"  # y = x @ W, as ONNX MatMul stores it: a column is strided
    NK = "NK"  # y = x @ W.T, as torch.nn.Linear stores it: a column is contiguous


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
    has to read: the weight, and scales and zero points where there are any. `own_kernel` says whether our kernels
    multiply it on the CPU; others belong to whatever runs the rest of the model.
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
    own_kernel: bool = True

    @property
    def column_bytes(self) -> float:
        """Bytes of one output column."""
        return self.weight_bytes / self.out_features
