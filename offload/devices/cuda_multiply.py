"""One multiplication on a GPU: which kernels and GEMMs it takes, and what each finds in the scratch memory."""

from collections.abc import Callable
from dataclasses import dataclass

from offload.devices.cuda_kernels import BlockWeight, CudaKernels, FloatRows, FloatWeight, Int8Rows, Weight
from offload.devices.scratch import MAX_ROWS, ScratchParts, scratch_parts
from offload.specs import Layout, WeightFormat


@dataclass(frozen=True)
class Gemm:
    """y[rows, columns] = x[rows, inner] @ W by a library, where W is whole or a panel of some columns.

    x and W are of one format; `x`, `w` and `y` are addresses, and rows of y begin every `y_pitch` elements of fp32.
    """

    x: int
    w: int
    y: int
    format: WeightFormat
    layout: Layout
    rows: int
    columns: int
    inner: int
    y_pitch: int


@dataclass(frozen=True)
class Scratch:
    """Scratch memory: an address that is a multiple of 16, and how much there is."""

    address: int
    nbytes: int


class CudaMultiplication:
    """Queues multiplications of fp32 rows with 16-bit weights and weights in blocks on one stream."""

    def __init__(self, kernels: CudaKernels, gemm: Callable[[Gemm], None], stream: int, fp32_panels: bool) -> None:
        """`fp32_panels` says that bf16 weights are to be expanded to fp32, since no GEMM takes them."""
        self._kernels = kernels
        self._gemm = gemm
        self._stream = stream
        self._fp32_panels = fp32_panels

    def __call__(self, x: FloatRows, w: Weight, y: int, scratch: Scratch, int8_rows: bool) -> None:
        """Queue y = x @ W; with `int8_rows`, x is rounded to int8 in the blocks of the weight.

        Raises ValueError where `scratch` does not suffice.
        """
        form, blocks = (w.format, None) if isinstance(w, FloatWeight) else (w.format.format, w.format)
        parts = scratch_parts(x.rows, w.columns, w.inner, form, blocks, int8_rows)
        if parts.nbytes > scratch.nbytes:
            raise ValueError(f"this multiplication needs {parts.nbytes} bytes of scratch memory, not {scratch.nbytes}")
        rows: FloatRows | Int8Rows = x
        if int8_rows and blocks is not None:
            rows = Int8Rows(scratch.address, scratch.address + parts.x_scales, x.rows, blocks.block, x.inner)
            self._kernels.quantise(x, rows, self._stream)
        if x.rows <= MAX_ROWS:
            self._kernels.multiply(rows, w, y, self._stream, scratch=scratch.address + parts.sums)
        elif isinstance(w, BlockWeight):
            self._by_fp16_panels(rows, w, y, scratch, parts)
        elif w.format is WeightFormat.BF16 and self._fp32_panels:
            self._by_fp32_panels(x, w, y, scratch, parts)
        else:
            half = scratch.address + parts.half_rows
            self._kernels.round_rows(x, half, w.format, self._stream)
            self._gemm(Gemm(half, w.address, y, w.format, w.layout, x.rows, w.columns, x.inner, w.columns))

    def _by_fp16_panels(
        self, x: FloatRows | Int8Rows, w: BlockWeight, y: int, scratch: Scratch, parts: ScratchParts
    ) -> None:
        half, panel = scratch.address + parts.half_rows, scratch.address + parts.panel
        if isinstance(x, Int8Rows):
            self._kernels.dequantise_rows(x, half, self._stream)
        else:
            self._kernels.round_rows(x, half, WeightFormat.FP16, self._stream)
        for start in range(0, w.columns, parts.panel_columns):
            stop = min(start + parts.panel_columns, w.columns)
            self._kernels.dequantise(w, start, stop, panel, WeightFormat.FP16, self._stream)
            at = y + 4 * start
            self._gemm(Gemm(half, panel, at, WeightFormat.FP16, Layout.NK, x.rows, stop - start, w.inner, w.columns))

    def _by_fp32_panels(self, x: FloatRows, w: FloatWeight, y: int, scratch: Scratch, parts: ScratchParts) -> None:
        panel = scratch.address + parts.panel
        for start in range(0, w.columns, parts.panel_columns):
            stop = min(start + parts.panel_columns, w.columns)
            self._kernels.widen_bf16(w, start, stop, panel, self._stream)
            at = y + 4 * start
            self._gemm(
                Gemm(x.address, panel, at, WeightFormat.FP32, w.layout, x.rows, stop - start, w.inner, w.columns)
            )
