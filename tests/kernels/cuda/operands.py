"""Random operands for the kernels, against forbidden pages, and what they should give, in float64."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from offload.devices.cuda.own_kernels import BlockWeight, CudaKernels, FloatRows, FloatWeight, Int8Rows
from offload.spec.linear import BlockFormat, Layout, WeightFormat
from tests.device.support import random_stored, to_float64
from tests.kernels.cuda.guarded import guarded

# Sums in fp32, in any order, of exact products: 2**-24 of the sum of magnitudes for each of a few dozen additions.
TOLERANCE = 2e-6


def address(array: Any) -> int:
    return int(array.__array_interface__["data"][0])


@dataclass
class FloatOperands:
    """x, W and bias; `slack_bytes` moves each away from its aligned place."""

    x: Any
    w: Any
    bias: Any
    weight: FloatWeight

    @staticmethod
    def random(
        form: WeightFormat, layout: Layout, rows: int, columns: int, inner: int, slack_bytes: int = 0, **place: Any
    ) -> "FloatOperands":
        rng = np.random.default_rng([rows, columns, inner])
        shape = (columns, inner) if layout is Layout.NK else (inner, columns)
        w = guarded(random_stored(rng, shape, form), slack_bytes, **place)
        x = guarded(rng.standard_normal((rows, inner)).astype(np.float32), 2 * slack_bytes, **place)
        bias = guarded(rng.standard_normal(columns).astype(np.float32))
        return FloatOperands(x, w, bias, FloatWeight(address(w), form, layout, columns, inner))

    def check(self, y: Any, with_bias: bool) -> None:
        w = to_float64(self.w, self.weight.format)
        check(y, self.x, w.T if self.weight.layout is Layout.NK else w, self.bias if with_bias else None)


@dataclass
class BlockOperands:
    """x and a block-quantised W."""

    x: Any
    codes: Any
    scales: Any
    zeros: Any
    bias: Any
    weight: BlockWeight

    @staticmethod
    def random(
        form: BlockFormat, has_zeros: bool, rows: int, columns: int, inner: int, slack_bytes: int = 0, **place: Any
    ) -> "BlockOperands":
        rng, form = np.random.default_rng([rows, columns, inner]), replace(form, zeros=has_zeros)
        packed = (columns, form.code_bytes(inner))
        codes = guarded(rng.integers(0, 256, packed, np.uint8), slack_bytes, **place)
        scales = rng.uniform(0.01, 0.1, (columns, form.blocks(inner))) * rng.choice([-1, 1], (columns, 1))
        scales = guarded(scales.astype(form.scales.storage_dtype))
        zeros = guarded(rng.integers(0, 256, (columns, form.zero_bytes(inner)), np.uint8)) if has_zeros else None
        x = guarded(rng.standard_normal((rows, inner)).astype(np.float32), 4 * slack_bytes, **place)
        bias = guarded(rng.standard_normal(columns).astype(np.float32))
        zeros_address = address(zeros) if has_zeros else 0
        weight = BlockWeight(address(codes), address(scales), zeros_address, form, columns, inner)
        return BlockOperands(x, codes, scales, zeros, bias, weight)

    @property
    def blocks(self) -> int:
        return self.weight.format.blocks(self.weight.inner)

    def centred(self) -> Any:
        """Codes less their zero points: int32[columns, blocks, block]."""
        form, columns = self.weight.format, self.weight.columns
        codes = unpack(self.codes, form.bits).reshape(columns, self.blocks, form.block)
        if self.zeros is None:
            return codes - (1 << form.bits - 1)
        return codes - unpack(self.zeros, form.bits)[:, : self.blocks, None]

    def dequantised(self) -> Any:
        """fp32[columns, inner], as DequantizeLinear gives it."""
        values = self.centred().astype(np.float32) * self.scales[:, :, None].astype(np.float32)
        return values.reshape(self.weight.columns, -1)[:, : self.weight.inner]

    def check(self, y: Any, with_bias: bool) -> None:
        check(y, self.x, self.dequantised().astype(np.float64).T, self.bias if with_bias else None)

    def quantised_x(self) -> tuple[Any, Any]:
        """int8[rows, blocks, block] and fp32[rows, blocks], by NumPy in fp32."""
        block, rows = self.weight.format.block, len(self.x)
        return quantised(np.pad(self.x, ((0, 0), (0, self.blocks * block - self.weight.inner))), rows, block)

    def check_int8(self, y: Any, with_bias: bool) -> None:
        codes, scales = self.quantised_x()
        x = codes * scales[:, :, None].astype(np.float64)
        w = self.centred() * self.scales[:, :, None].astype(np.float64)
        bias = self.bias if with_bias else None
        check(y, x.reshape(len(x), -1), w.reshape(self.weight.columns, -1).T, bias)


def multiply(kernels: CudaKernels, operands: FloatOperands | BlockOperands, with_bias: bool = False) -> Any:
    """y by the kernels, from fp32 x; every buffer has exactly the size it needs."""
    x = operands.x
    return run(kernels, FloatRows(address(x), *x.shape), operands, with_bias)


def multiply_int8(kernels: CudaKernels, operands: BlockOperands, with_bias: bool = False) -> Any:
    """y by the kernels, from x that they have quantised."""
    (rows, inner), block = operands.x.shape, operands.weight.format.block
    blocks = -(-inner // block)
    codes, scales = (guarded(np.full(rows * blocks * size, 0xFF, np.uint8)) for size in (block, 4))
    quantised_rows = Int8Rows(address(codes), address(scales), rows, block, inner)
    kernels.quantise(FloatRows(address(operands.x), rows, inner), quantised_rows, 1)
    return run(kernels, quantised_rows, operands, with_bias)


def run(kernels: CudaKernels, x: FloatRows | Int8Rows, operands: FloatOperands | BlockOperands, with_bias: bool) -> Any:
    weight = operands.weight
    y = guarded(np.full((x.rows, weight.columns), np.nan, np.float32))
    scratch = guarded(np.full(kernels.scratch_bytes(x.rows, weight), 0xFF, np.uint8))
    bias = address(operands.bias) if with_bias else 0
    kernels.multiply(x, weight, address(y), 1, bias, address(scratch) if scratch.size else 0)
    return y


def check(y: Any, x: Any, w: Any, bias: Any) -> None:
    """`y` is x @ w + bias, as exactly as fp32 sums are; w is float64[inner, columns]."""
    expected, magnitude = x.astype(np.float64) @ w, np.abs(x).astype(np.float64) @ np.abs(w)
    if bias is not None:
        expected, magnitude = expected + bias, magnitude + np.abs(bias)
    assert np.all(np.abs(y - expected) <= TOLERANCE * magnitude)  # false for NaN as well


def unpack(packed: Any, bits: int) -> Any:
    """int32[columns, codes] of uint8[columns, bytes], the low nibble first."""
    if bits == 8:
        return packed.astype(np.int32)
    return np.stack([packed & 15, packed >> 4], -1).reshape(len(packed), -1).astype(np.int32)


def quantised(x: Any, rows: int, block: int) -> tuple[Any, Any]:
    """fp32[rows, blocks * block] in int8 blocks, and their scales."""
    x = x.reshape(rows, -1, block)
    scales = np.abs(x).max(-1) / np.float32(127)
    inverse = np.divide(1, scales, where=scales != 0, out=np.zeros_like(scales))
    return np.rint(x * inverse[:, :, None]).astype(np.int8), scales
