"""The multiplications that the part "kernels" measures, and what they should give in float64.

The device's weights are a block of random halves over and over, so any offset in it holds a weight: as halves, or as
the bytes of codes with scales behind them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.gpu.device_time import Bench
from bench.shapes import Shape
from offload.devices.base import DeviceAllocation, DeviceArray, DeviceBlocks, DeviceWeight
from offload.plan.scratch import scratch_bytes
from offload.spec.arrays import HostArray, aligned
from offload.spec.linear import Activations, BlockFormat, Layout, WeightFormat

_CHECKED_COLUMNS = 64
Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Matrix:
    """A weight of the decoder, by its Linear's name."""

    name: str
    inner: int
    columns: int


def matrices(shape: Shape) -> tuple[Matrix, ...]:
    """The Linears of a layer that differ, and the head."""
    q, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    return (
        Matrix("q_proj", shape.hidden, q),
        Matrix("k_proj", shape.hidden, kv),
        Matrix("gate_proj", shape.hidden, shape.intermediate),
        Matrix("down_proj", shape.intermediate, shape.hidden),
        Matrix("lm_head", shape.hidden, shape.vocab),
    )


@dataclass(frozen=True)
class GemmCase:
    """A library's GEMM alone: x is stored as the weights are. `values` is what these repeat, in its storage type."""

    kernel: str
    matrix: Matrix
    form: WeightFormat
    layout: Layout
    rows: int
    values: HostArray

    @property
    def weights(self) -> str:
        """Describe how the weight is stored, for people."""
        return f"{self.form} {self.layout}"

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weight."""
        return self.matrix.inner * self.matrix.columns * self.form.itemsize_bytes

    @property
    def x_format(self) -> WeightFormat:
        """The format of x."""
        return self.form

    def x(self) -> HostArray:
        """[M, K], in its storage type."""
        wide = np.random.default_rng(self.rows).standard_normal((self.rows, self.matrix.inner), np.float32)
        return to_stored(wide, self.x_format)

    def multiplied_x(self) -> Float64:
        """The values of x that the weight is multiplied with."""
        return to_float64(self.x(), self.x_format)

    def queue(self, bench: Bench, x: DeviceArray, y: DeviceArray, offset: int) -> None:
        """Queue y = x @ W for the weight that begins at `offset` bytes."""
        stream: Any = bench.stream
        stream.gemm(x, self.placed(bench.weights, offset), y, self.layout)

    def placed(self, allocation: DeviceAllocation, offset: int) -> DeviceWeight:
        """The weight that begins at `offset` bytes of an allocation."""
        inner, columns = self.matrix.inner, self.matrix.columns
        shape = (inner, columns) if self.layout is Layout.KN else (columns, inner)
        return DeviceArray(allocation, offset, shape, self.form)

    def weight(self, columns: npt.NDArray[np.int64], offset: int) -> Float64:
        """Some columns of the weight at `offset` bytes: [K, len(columns)]."""
        k = np.arange(self.matrix.inner, dtype=np.int64)[:, None]
        places = columns * self.matrix.inner + k if self.layout is Layout.NK else k * self.matrix.columns + columns
        begin = offset // self.form.itemsize_bytes
        return to_float64(self.values[(begin + places) % self.values.size], self.form)

    def error(self, y: npt.NDArray[np.float32], offset: int) -> float:
        """The largest error of some columns of `y` [M, N], relative to the sums of the magnitudes."""
        columns = np.unique(np.linspace(0, self.matrix.columns - 1, _CHECKED_COLUMNS).astype(np.int64))
        x, w = self.multiplied_x(), self.weight(columns, offset)
        errors = np.abs(y[:, columns] - x @ w) / (np.abs(x) @ np.abs(w))
        return float(errors.max()) if np.isfinite(errors).all() else float("inf")


@dataclass(frozen=True)
class OwnGemm(GemmCase):
    """As steps multiply, where x is fp32: up to 8 rows of half weights by our CUDA C kernels."""

    @property
    def x_format(self) -> WeightFormat:
        """The format of x."""
        return WeightFormat.FP32

    @property
    def activations(self) -> Activations:
        """Name the type that x is rounded to."""
        return Activations.FLOAT

    def queue(self, bench: Bench, x: DeviceArray, y: DeviceArray, offset: int) -> None:
        """See GemmCase. The scratch memory is behind y."""
        w = self.placed(bench.weights, offset)
        blocks = w.blocks if isinstance(w, DeviceBlocks) else None
        form = blocks.format if blocks else self.form
        nbytes = scratch_bytes(self.rows, self.matrix.columns, self.matrix.inner, form, blocks)
        scratch = DeviceArray(y.allocation, y.offset_bytes + aligned(y.nbytes), (1, nbytes), WeightFormat.INT8)
        assert scratch.offset_bytes + nbytes <= bench.results.nbytes
        bench.stream.multiply(x, w, y, self.layout, scratch, self.activations)


@dataclass(frozen=True)
class OwnBlocks(OwnGemm):
    """Block-quantised weights: blocks of `block` codes of `bits` bits, each with an fp16 scale.

    With `int8_rows`, up to 8 rows of x are rounded to int8 first, which takes a part of the time.
    """

    bits: int = 8
    block: int = 64
    int8_rows: bool = False

    @property
    def weights(self) -> str:
        """Describe how the weight is stored, for people."""
        return f"int{self.bits}, blocks of {self.block}" + (", x in int8" if self.int8_rows else "")

    @property
    def weight_bytes(self) -> int:
        """Bytes of codes and scales."""
        return self.matrix.columns * self._stored.column_bytes(self.matrix.inner)

    @property
    def activations(self) -> Activations:
        """See OwnGemm."""
        return Activations.INT8 if self.int8_rows else Activations.FLOAT

    def placed(self, allocation: DeviceAllocation, offset: int) -> DeviceWeight:
        """See GemmCase."""
        return DeviceBlocks(allocation, offset, self.matrix.columns, self.matrix.inner, self._stored)

    def multiplied_x(self) -> Float64:
        """See GemmCase. Quantised as the kernel does it: in fp32, to the nearest of 255 steps of each block."""
        x = super().multiplied_x()
        if not self.int8_rows:
            return x
        padded = np.zeros((self.rows, self._blocks * self.block), np.float32)
        padded[:, : self.matrix.inner] = x
        blocks = padded.reshape(self.rows, self._blocks, self.block)
        scales = np.abs(blocks).max(-1, keepdims=True) / np.float32(127)
        quantised = np.rint(blocks * (1 / scales)).astype(np.float64) * scales
        cut: Float64 = quantised.reshape(self.rows, -1)[:, : self.matrix.inner]
        return cut

    def weight(self, columns: npt.NDArray[np.int64], offset: int) -> Float64:
        """See GemmCase. Codes are unsigned around the middle, the lower half of a byte first."""
        stored = self.values.view(np.uint8)
        k = np.arange(self.matrix.inner, dtype=np.int64)[:, None]
        per_byte = 8 // self.bits
        places = offset + columns * (self._code_bytes // self.matrix.columns) + k // per_byte
        packed = stored[places % stored.size].astype(np.int64)
        codes = packed if self.bits == 8 else (packed >> (4 * (k % 2))) & 15
        begin = (offset + self._code_bytes) // 2
        scale_places = begin + columns * self._blocks + k // self.block
        scales = to_float64(stored.view(np.float16)[scale_places % (stored.size // 2)], WeightFormat.FP16)
        weight: Float64 = (codes - (1 << self.bits - 1)) * scales
        return weight

    @property
    def _stored(self) -> BlockFormat:
        return BlockFormat(self.bits, self.block, WeightFormat.FP16)

    @property
    def _blocks(self) -> int:
        return self._stored.blocks(self.matrix.inner)

    @property
    def _code_bytes(self) -> int:
        return self.matrix.columns * self._stored.code_bytes(self.matrix.inner)


def cases(
    form: WeightFormat, library: str, own: bool, shape: Shape, rows: Sequence[int], values: HostArray
) -> Iterator[GemmCase]:
    """Everything to measure with weights in a float format, and with the blocks that fp16 scales belong to.

    `library` is whose GEMM is measured alone, "" where there is none, and `own` whether the device has other kernels.
    """
    kernel = "CUDA C" if library else "modelled"
    for matrix in matrices(shape):
        for count in rows:
            for layout in Layout:
                if library:
                    yield GemmCase(library, matrix, form, layout, count, values)
                if own and not (library and form is WeightFormat.FP32):
                    yield OwnGemm(kernel, matrix, form, layout, count, values)
            if own and form is WeightFormat.FP16:
                for bits in (8, 4):
                    for int8_rows in (False, True):
                        yield OwnBlocks(kernel, matrix, form, Layout.NK, count, values, bits=bits, int8_rows=int8_rows)


def to_stored(values: npt.NDArray[np.float32], form: WeightFormat) -> HostArray:
    """Round to a float format; bf16 by cutting off, which is as good here."""
    if form is WeightFormat.BF16:
        cut: HostArray = (values.view(np.uint32) >> 16).astype(np.uint16)
        return cut
    return values.astype(form.storage_dtype)


def to_float64(stored: Any, form: WeightFormat) -> Float64:
    """The exact values of a float format."""
    if form is WeightFormat.BF16:
        widened: Float64 = (stored.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
        return widened
    exact: Float64 = stored.astype(np.float64)
    return exact
