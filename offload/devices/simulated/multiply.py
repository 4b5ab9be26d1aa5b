"""The multiplications of the simulated device: whether the operands fit, and their values, in NumPy.

What is rounded, and to what, is as on a GPU: see DeviceStream.multiply. Sums are fp32, in NumPy's order.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from offload.devices.base import DeviceArray, DeviceBlocks, DeviceWeight
from offload.devices.row_scales import fp16_row_scales
from offload.devices.simulated.memory import POISON, DeviceMisuseError, as_float32, device_bytes
from offload.plan.scratch import MAX_ROWS, scratch_bytes
from offload.spec.linear import Activations, BlockFormat, Layout, WeightFormat

Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Operands:
    """The arrays that one multiplication reads and writes."""

    x: DeviceArray
    w: DeviceWeight
    y: DeviceArray
    layout: Layout
    scratch: DeviceArray
    activations: Activations

    @property
    def name(self) -> str:
        """M, K and N, for people."""
        return f"{self.x.shape[0]}x{self.x.shape[1]}x{self.y.shape[1]}"

    @property
    def blocks(self) -> BlockFormat | None:
        """Say how W is block-quantised; None where it is not."""
        return self.w.blocks if isinstance(self.w, DeviceBlocks) else None

    @property
    def weight_format(self) -> WeightFormat:
        """Name the format of the elements of W."""
        return self.w.blocks.format if isinstance(self.w, DeviceBlocks) else self.w.format

    @property
    def scratch_used(self) -> DeviceArray:
        """The part of the scratch memory that is written to."""
        return DeviceArray(self.scratch.allocation, self.scratch.offset_bytes, (1, self._need_bytes), WeightFormat.INT8)

    def check(self, x_format: WeightFormat) -> None:
        """Raise DeviceMisuseError for operands that do not fit, are out of bounds or freed."""
        rows, inner = self.x.shape
        columns = self.y.shape[1]
        if isinstance(self.w, DeviceBlocks):
            stored, wanted = (self.w.columns, self.w.in_features), (columns, inner)
            fits = self.layout is Layout.NK
        else:
            stored, wanted = self.w.shape, (inner, columns) if self.layout is Layout.KN else (columns, inner)
            fits = self.w.format.is_float
        operands = f"multiply of x {self.x.shape} {self.x.format}, w {stored} {self.weight_format} {self.layout}"
        operands += f" and y {self.y.shape} {self.y.format}"
        if not fits or stored != wanted or self.y.shape != (rows, columns):
            raise DeviceMisuseError(operands)
        if self.x.format is not x_format or self.y.format is not WeightFormat.FP32:
            raise DeviceMisuseError(f"{operands}: x has to be {x_format} and y fp32")
        if self.scratch.nbytes < self._need_bytes:
            raise DeviceMisuseError(f"{operands} with {self.scratch.nbytes} bytes of scratch, not {self._need_bytes}")
        for array in (self.x, _whole(self.w), self.y, self.scratch):
            device_bytes(array)

    def multiply(self) -> None:
        """Write y, and poison the scratch memory."""
        with np.errstate(all="ignore"):  # poison and overflow are for the caller to find
            product = np.matmul(self._x(), self._w()) * self._row_scales()
        device_bytes(self.y)[:] = product.reshape(-1).view(np.uint8)
        device_bytes(self.scratch_used)[:] = POISON

    @property
    def _need_bytes(self) -> int:
        rows, inner = self.x.shape
        return scratch_bytes(rows, self.y.shape[1], inner, self.weight_format, self.blocks)

    @property
    def _gemm_format(self) -> WeightFormat:
        """Name the type of both operands where a library multiplies them: more rows than our own kernels take."""
        return WeightFormat.FP16 if isinstance(self.w, DeviceBlocks) else self.w.format

    def _x(self) -> Float32:
        """[M, K], as it is multiplied."""
        x = as_float32(self.x)
        if len(x) > MAX_ROWS:
            return _rounded(x / self._row_scales(), self._gemm_format)
        if self.blocks is not None and self.activations is Activations.INT8:
            return rounded_to_int8(x, self.blocks.block)
        return x

    def _row_scales(self) -> Float32 | np.float32:
        """[M, 1], what x is divided by before it is rounded, and y multiplied by."""
        by_gemm = self.x.shape[0] > MAX_ROWS and self.x.format is WeightFormat.FP32
        if not by_gemm or self._gemm_format is not WeightFormat.FP16:
            return np.float32(1)
        return fp16_row_scales(as_float32(self.x))

    def _w(self) -> Float32:
        """[K, N], as it is multiplied."""
        if isinstance(self.w, DeviceBlocks):
            w = _dequantised(self.w)
            return (_rounded(w, self._gemm_format) if self.x.shape[0] > MAX_ROWS else w).T
        return as_float32(self.w) if self.layout is Layout.KN else as_float32(self.w).T


def rounded_to_int8(x: Float32, block: int) -> Float32:
    """x[M, K] rounded to the nearest of 255 steps of each block of K, as quantise_rows.cu does it.

    Where a block has a NaN or an infinity, all of it is NaN.
    """
    rows, inner = x.shape
    blocks = np.zeros((rows, -(-inner // block), block), np.float32)
    blocks.reshape(rows, -1)[:, :inner] = x
    scales = np.abs(blocks).max(-1, keepdims=True) / np.float32(127)
    inverse = np.divide(np.float32(1), scales, out=np.zeros_like(scales), where=scales != 0)
    codes = np.nan_to_num(np.clip(np.rint(blocks * inverse), -128, 127), nan=0)
    rounded: Float32 = (codes * scales).reshape(rows, -1)[:, :inner]
    return rounded


def _whole(w: DeviceWeight) -> DeviceArray:
    return w.whole if isinstance(w, DeviceBlocks) else w


def _dequantised(w: DeviceBlocks) -> Float32:
    """[N, K] in fp32: (code - zero point) * scale."""
    bits, shape = w.blocks.bits, (w.columns, w.blocks.blocks(w.in_features), w.blocks.block)
    codes = _unpacked(w.codes, bits).reshape(shape)
    if w.zeros is None:
        codes -= 1 << (bits - 1)
    else:
        codes -= _unpacked(w.zeros, bits)[:, : shape[1], None]
    values: Float32 = codes * as_float32(w.scales)[:, :, None]
    return values.reshape(w.columns, -1)[:, : w.in_features]


def _unpacked(packed: DeviceArray, bits: int) -> Float32:
    """[rows, codes] of bytes, of which each has one code or two, the low half first."""
    stored = device_bytes(packed).reshape(packed.shape)
    if bits == 4:
        stored = np.stack([stored & 15, stored >> 4], -1).reshape(len(stored), -1)
    return stored.astype(np.float32)


def _rounded(values: Float32, float_format: WeightFormat) -> Float32:
    """Values rounded to the nearest of a float format, ties to even."""
    if float_format is WeightFormat.FP32:
        return values
    if float_format is WeightFormat.FP16:
        return values.astype(np.float16).astype(np.float32)
    bits = np.ascontiguousarray(values).view(np.uint32)
    nearest = ((bits + np.uint32(0x7FFF) + (bits >> 16 & 1)) & np.uint32(0xFFFF0000)).view(np.float32)
    return np.where(np.isnan(values), values, nearest)
