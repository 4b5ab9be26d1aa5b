"""One multiplication on a GPU: which kernels and GEMMs it takes, and what each finds in the scratch memory."""

from collections.abc import Callable
from dataclasses import dataclass

from offload.devices.cuda.own_kernels import (
    BlockWeight,
    CudaKernels,
    FloatRows,
    FloatWeight,
    Int8Rows,
    ReadyLaunch,
    Weight,
)
from offload.plan.scratch import ScratchParts, scratch_parts
from offload.spec.linear import Layout, WeightFormat


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
    """Multiplications of fp32 rows with 16-bit weights and block-quantised weights on one stream."""

    def __init__(self, kernels: CudaKernels, gemm: Callable[[Gemm], None], stream: int, fp32_panels: bool) -> None:
        """`fp32_panels` says that bf16 weights are to be expanded to fp32, for want of a fast GEMM."""
        self._kernels = kernels
        self._gemm = gemm
        self._stream = stream
        self._fp32_panels = fp32_panels

    def few_rows(self, x: FloatRows, w: Weight, y: int, scratch: Scratch, int8_rows: bool) -> list[ReadyLaunch]:
        """List the launches for y = x @ W with up to MAX_ROWS rows.

        With `int8_rows`, x is rounded to int8 in the blocks of the weight. Raises ValueError where `scratch` does not
        suffice.
        """
        parts = _parts(x, w, scratch, int8_rows)
        sums = scratch.address + parts.sums
        if not int8_rows or isinstance(w, FloatWeight):
            return self._kernels.multiplication(x, w, y, scratch=sums)
        scales = scratch.address + parts.x_scales
        rows = Int8Rows(scratch.address, scales, x.rows, w.format.block, x.inner)
        return [self._kernels.quantisation(x, rows), *self._kernels.multiplication(rows, w, y, scratch=sums)]

    def many_rows(self, x: FloatRows, w: Weight, y: int, scratch: Scratch) -> None:
        """Queue y = x @ W with more rows. Raises ValueError where `scratch` does not suffice."""
        parts = _parts(x, w, scratch, int8_rows=False)
        if isinstance(w, FloatWeight) and w.format is WeightFormat.BF16 and self._fp32_panels:
            self._by_panels(x.address, WeightFormat.FP32, x.rows, w, y, scratch.address, parts)
            return
        half = w.format if isinstance(w, FloatWeight) else WeightFormat.FP16
        scales = scratch.address + parts.x_scales if half is WeightFormat.FP16 else 0
        if scales:
            self._kernels.row_scales(x, scales, self._stream)
        self._kernels.round_rows(x, scratch.address, half, self._stream, scales)
        if isinstance(w, BlockWeight):
            self._by_panels(scratch.address, half, x.rows, w, y, scratch.address, parts)
        else:
            self._gemm(Gemm(scratch.address, w.address, y, half, w.layout, x.rows, w.columns, w.inner, w.columns))
        if scales:
            self._kernels.scale_rows(y, scales, x.rows, w.columns, self._stream)

    def _by_panels(
        self, x: int, form: WeightFormat, rows: int, w: Weight, y: int, scratch: int, parts: ScratchParts
    ) -> None:
        """Some columns at a time, expanded to `form`, which x has."""
        panel = scratch + parts.panel
        for start in range(0, w.columns, parts.panel_columns):
            stop = min(start + parts.panel_columns, w.columns)
            if isinstance(w, BlockWeight):
                layout = Layout.NK
                self._kernels.dequantise(w, start, stop, panel, form, self._stream)
            else:
                layout = w.layout
                self._kernels.widen_bf16(w, start, stop, panel, self._stream)
            self._gemm(Gemm(x, panel, y + 4 * start, form, layout, rows, stop - start, w.inner, w.columns))


def _parts(x: FloatRows, w: Weight, scratch: Scratch, int8_rows: bool) -> ScratchParts:
    form, blocks = (w.format, None) if isinstance(w, FloatWeight) else (w.format.format, w.format)
    parts = scratch_parts(x.rows, w.columns, w.inner, form, blocks, int8_rows)
    if parts.nbytes > scratch.nbytes:
        raise ValueError(f"this multiplication needs {parts.nbytes} bytes of scratch memory, not {scratch.nbytes}")
    return parts
