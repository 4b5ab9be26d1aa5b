"""Device memory that a multiplication needs beside x, W and y. Arithmetic, so that a plan can count it.

Up to MAX_ROWS rows are multiplied by our own kernels: they read fp32 x, or x in int8 blocks, and may split the inner
dimension, each split with its own sums. More rows are multiplied by a GEMM of 16-bit operands: x is rounded to them,
and weights in blocks are expanded to panels of some of their columns. On GPUs without a bf16 GEMM, bf16 weights are
expanded to fp32 panels instead.
"""

from offload.devices.base import aligned
from offload.specs import BlockFormat, WeightFormat

MAX_ROWS = 8  # rows of x that our own kernels take
PANEL_BYTES = 16 * 2**20
SPLIT_BYTES = 2 * 2**20
SPLIT_FEATURES = 256  # a split has at least so many rows of K


def scratch_bytes(
    rows: int, columns: int, in_features: int, weight_format: WeightFormat, blocks: BlockFormat | None
) -> int:
    """Bytes for any step of up to `rows` rows and weights of up to `columns` columns, whatever the GPU.

    The parts, each aligned: x in int8 blocks and the sums of the splits; or x in 16 bits and a panel.
    """
    if weight_format is WeightFormat.FP32:
        return 0
    few = min(rows, MAX_ROWS)
    need = split_bytes(few, columns, in_features)
    if blocks is not None:
        need += int8_rows_bytes(few, in_features, blocks.block)
    if rows > MAX_ROWS:
        need = max(need, aligned(rows * in_features * 2) + _panel_bytes(columns, in_features, weight_format))
    return need


def most_splits(rows: int, columns: int, in_features: int) -> int:
    """Into how many parts our kernels may split the inner dimension."""
    by_memory = SPLIT_BYTES // (4 * rows * columns)
    return max(1, min(by_memory, -(-in_features // SPLIT_FEATURES)))


def split_bytes(rows: int, columns: int, in_features: int) -> int:
    """Bytes for the sums of all splits, and for those of fewer rows or columns, aligned; one split writes y itself."""
    splits = -(-in_features // SPLIT_FEATURES)
    return min(SPLIT_BYTES, aligned(splits * rows * columns * 4)) if splits > 1 else 0


def int8_rows_bytes(rows: int, in_features: int, block: int) -> int:
    """Bytes of x in int8 blocks and of its fp32 scales, each aligned."""
    blocks = -(-in_features // block)
    return aligned(rows * blocks * block) + aligned(rows * blocks * 4)


def panel_columns(columns: int, in_features: int, panel: WeightFormat) -> int:
    """How many columns are expanded to fp16 or fp32 at a time."""
    return min(columns, max(1, PANEL_BYTES // (in_features * panel.itemsize_bytes)))


def _panel_bytes(columns: int, in_features: int, weight_format: WeightFormat) -> int:
    if weight_format is WeightFormat.FP16:
        return 0
    panel = WeightFormat.FP32 if weight_format is WeightFormat.BF16 else WeightFormat.FP16
    return aligned(panel_columns(columns, in_features, panel) * in_features * panel.itemsize_bytes)
