"""Device memory that a multiplication needs beside x, W and y. Arithmetic, so that a plan can count it.

Up to MAX_ROWS rows are multiplied by our own kernels: they read fp32 x, or x in int8 blocks, and may split the inner
dimension, each split with its own sums. More rows are multiplied by a GEMM of 16-bit operands: x is rounded to them, in
fp16 with a scale for each row, and block-quantised weights are expanded to panels of some of their columns. On GPUs
without a bf16 GEMM, bf16 weights are expanded to fp32 panels instead.
"""

from dataclasses import dataclass

from offload.spec.arrays import aligned
from offload.spec.linear import BlockFormat, WeightFormat

MAX_ROWS = 8  # rows of x that our own kernels take
PANEL_BYTES = 16 * 2**20
SPLIT_BYTES = 2 * 2**20
SPLIT_FEATURES = 256  # a split has at least so many rows of K
_PANEL_TILE = 8  # columns: the rows of a [K, N] panel then begin at multiples of 16 bytes


@dataclass(frozen=True)
class ScratchParts:
    """The parts of one multiplication's scratch memory: offsets in bytes, all aligned.

    What there is of these: x in int8 blocks at 0, its scales at `x_scales`, the sums of splits at `sums`; or x in 16
    bits at 0, its scales at `x_scales` where that is fp16, and at `panel` one of `panel_columns` columns at most.
    """

    nbytes: int
    x_scales: int = 0
    sums: int = 0
    panel: int = 0
    panel_columns: int = 0


def scratch_bytes(
    rows: int, columns: int, in_features: int, weight_format: WeightFormat, blocks: BlockFormat | None
) -> int:
    """Bytes for any step of up to `rows` rows and weights of up to `columns` columns, whatever the GPU."""
    if weight_format is WeightFormat.FP32:
        return 0
    int8_rows = blocks is not None
    return max(
        scratch_parts(count, columns, in_features, weight_format, blocks, int8_rows).nbytes
        for count in (min(rows, MAX_ROWS), rows)
    )


def scratch_parts(
    rows: int,
    columns: int,
    in_features: int,
    weight_format: WeightFormat,
    blocks: BlockFormat | None,
    int8_rows: bool,
) -> ScratchParts:
    """Lay out the scratch of weights that are not fp32; `int8_rows` says whether few rows of x are block-quantised."""
    if rows <= MAX_ROWS:
        x_scales = sums = 0
        if int8_rows and blocks is not None:
            x_scales = aligned(rows * blocks.blocks(in_features) * blocks.block)
            sums = int8_rows_bytes(rows, in_features, blocks.block)
        return ScratchParts(sums + split_bytes(rows, columns, in_features), x_scales, sums)
    x_scales = aligned(rows * in_features * 2)
    panel = x_scales + (0 if weight_format is WeightFormat.BF16 else aligned(rows * 4))
    if weight_format is WeightFormat.FP16:
        return ScratchParts(panel, x_scales)
    expanded = WeightFormat.FP32 if weight_format is WeightFormat.BF16 else WeightFormat.FP16
    width = panel_columns(columns, in_features, expanded)
    panel_bytes = aligned(width * in_features * expanded.itemsize_bytes)
    return ScratchParts(panel + panel_bytes, x_scales, panel=panel, panel_columns=width)


def most_splits(rows: int, columns: int, in_features: int) -> int:
    """Into how many parts our kernels may split the inner dimension."""
    by_memory = SPLIT_BYTES // (4 * rows * columns)
    return max(1, min(by_memory, -(-in_features // SPLIT_FEATURES)))


def split_bytes(rows: int, columns: int, in_features: int) -> int:
    """Bytes, aligned, of the sums of all splits for any weight of up to `columns` columns.

    One split writes y and takes none, and so wide weights take none; but narrower ones do.
    """
    splits = -(-in_features // SPLIT_FEATURES)
    return aligned(min(SPLIT_BYTES, splits * rows * columns * 4)) if splits > 1 else 0


def int8_rows_bytes(rows: int, in_features: int, block: int) -> int:
    """Bytes of x in int8 blocks and of its fp32 scales, each aligned."""
    blocks = -(-in_features // block)
    return aligned(rows * blocks * block) + aligned(rows * blocks * 4)


def panel_columns(columns: int, in_features: int, panel: WeightFormat) -> int:
    """Count the columns that are expanded to fp16 or fp32 at a time."""
    fit = max(1, PANEL_BYTES // (in_features * panel.itemsize_bytes))
    return min(columns, fit if fit < _PANEL_TILE else fit // _PANEL_TILE * _PANEL_TILE)
