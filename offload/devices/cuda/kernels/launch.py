"""Which kernel multiplies what, and with how many threads: pure arithmetic on shapes.

The weight is shared out between blocks by columns. Where that gives too few blocks to keep a GPU busy, the inner
dimension is split between blocks as well: their parts go to a scratch buffer, which a second kernel adds up in a
fixed order. So the same launch gives the same bits every time.
"""

from dataclasses import dataclass

from offload.plan.scratch import MAX_ROWS, most_splits
from offload.spec.linear import BlockFormat, Layout, WeightFormat

_WARP = 32
_MAX_THREADS = 128  # MAX_THREADS in common.cuh
_COLUMNS_PER_BLOCK = 4  # COLUMNS_PER_BLOCK in common.cuh
_TILE, _THREADS_ACROSS, _STEP = 64, 8, 4  # in float_kn.cu
_CHUNK_BYTES = 16  # what a thread reads at a time
# 16 warps of 128 threads' blocks on every multiprocessor, half of what a T4 can hold. Chosen, not measured.
_BLOCKS_PER_PROCESSOR = 4
_FORMATS = {WeightFormat.FP32: "Fp32", WeightFormat.FP16: "Fp16", WeightFormat.BF16: "Bf16"}


@dataclass(frozen=True)
class Launch:
    """One launch: `kernel` is a C++ name of `program`, a .cu file; `blocks` is the grid."""

    program: str
    kernel: str
    blocks: tuple[int, int]
    threads: int
    shared_bytes: int = 0


@dataclass(frozen=True)
class SplitLaunch:
    """The launch of a multiplication, whose inner dimension is cut into `splits` of `units_per_split`.

    A unit is what one thread takes at a time: a chunk of a column, or a few rows of a [K, N] weight.
    """

    launch: Launch
    splits: int
    units_per_split: int

    def scratch_bytes(self, rows: int, columns: int) -> int:
        """Bytes that the splits' parts take, fp32[splits, rows, columns]; 0 when there is one split."""
        return self.splits * rows * columns * 4 if self.splits > 1 else 0


def block_log2(weight: BlockFormat) -> int:
    """The block size as a power of two."""
    return weight.block.bit_length() - 1


def chunk_bytes(weight: BlockFormat) -> int:
    """Bytes of a block-quantised weight that a thread reads at a time at most, all of one block."""
    return min(_CHUNK_BYTES, weight.block * weight.bits // 8)


def chunk_codes(weight: BlockFormat) -> int:
    """Codes in such a chunk."""
    return chunk_bytes(weight) * 8 // weight.bits


def multiply_float(
    weight_format: WeightFormat, layout: Layout, rows: int, columns: int, inner: int, aligned: bool, processors: int
) -> SplitLaunch:
    """y[rows, columns] = x[rows, inner] @ W for fp16 and bf16 weights.

    `aligned`: x and W begin at multiples of 16 bytes, and so does every 8th column and, for KN, row of them.
    `processors` is the number of multiprocessors to keep busy.
    """
    _check_rows(rows)
    if weight_format not in (WeightFormat.FP16, WeightFormat.BF16):
        raise ValueError(f"no float kernel multiplies {weight_format}")
    arguments = f"<{_FORMATS[weight_format]}, {rows}, {_flag(aligned)}>"
    if layout is Layout.NK:
        kernel, chunks = f"multiply_float_nk{arguments}", -(-inner // 8)
        return _by_columns("float_nk.cu", kernel, rows, columns, inner, chunks, processors)
    tiles = -(-columns // _TILE)
    deep = _MAX_THREADS // _THREADS_ACROSS  # steps that a full block takes at once
    splits, steps = _split(-(-inner // _STEP), deep, tiles, processors, most_splits(rows, columns, inner))
    warp_steps = _WARP // _THREADS_ACROSS
    warps = min(_MAX_THREADS // _WARP, -(-steps // warp_steps))
    launch = Launch(
        "float_kn.cu",
        f"multiply_float_kn{arguments}",
        (tiles, splits),
        warps * _WARP,
        shared_bytes=warps * rows * _TILE * 4,
    )
    return SplitLaunch(launch, splits, steps)


def multiply_blocks(
    weight: BlockFormat, int8_rows: bool, rows: int, columns: int, inner: int, aligned: bool, processors: int
) -> SplitLaunch:
    """y[rows, columns] = x[rows, inner] @ W for block-quantised weights.

    `int8_rows`: x was quantised by `quantise_rows`. `aligned`: W begins at a multiple of `chunk_bytes` and,
    unless x is int8, x at one of 16 bytes and `inner` is a multiple of `chunk_codes`.
    """
    _check_rows(rows)
    # Unpacked weights and fp32 rows side by side take registers: the more rows, the less of a weight at a time.
    most_bytes = _CHUNK_BYTES if int8_rows or rows <= 2 else 8 if rows <= 4 else 4
    read_bytes = min(most_bytes, chunk_bytes(weight))
    arguments = f"<{_arguments(weight)}, {read_bytes // 4}, {rows}, {_flag(aligned)}>"
    name = "blocks_int8" if int8_rows else "blocks_float"
    chunks = -(-inner * weight.bits // (8 * read_bytes))
    return _by_columns(f"{name}.cu", f"multiply_{name}{arguments}", rows, columns, inner, chunks, processors)


def sum_splits(rows: int, columns: int) -> Launch:
    """Add up the parts of a multiplication with several splits."""
    return _in_line("sum_splits.cu", "sum_splits", rows * columns)


def quantise_rows(rows: int, blocks: int) -> Launch:
    """Quantise x[rows, inner] to int8 in so many blocks a row; a warp for each."""
    warps = _MAX_THREADS // _WARP
    return Launch("quantise_rows.cu", "quantise_rows", (-(-rows * blocks // warps), 1), _MAX_THREADS)


def dequantise(weight: BlockFormat, panel: WeightFormat, columns: int, inner: int, aligned: bool) -> Launch:
    """Write `columns` of a block-quantised weight as a dense fp16 or fp32 panel [columns, inner].

    `aligned`: W begins at a multiple of 4 bytes and the panel at one of 16, as does every 8th element of its rows.
    """
    if panel not in (WeightFormat.FP16, WeightFormat.FP32):
        raise ValueError(f"a panel is fp16 or fp32, not {panel}")
    kernel = f"dequantise<{_arguments(weight)}, {_FORMATS[panel]}, {_flag(aligned)}>"
    return _row_by_row("dequantise.cu", kernel, columns, -(-inner * weight.bits // 32))


def fetch(nbytes: int) -> Launch:
    """Copy bytes of pinned host memory, 16 a thread."""
    return _in_line("fetch.cu", "fetch", -(-nbytes // 16))


def round_rows(rounded: WeightFormat, rows: int, inner: int) -> Launch:
    """Round fp32 [rows, inner] to fp16 or bf16, 4 numbers a thread."""
    if rounded not in (WeightFormat.FP16, WeightFormat.BF16):
        raise ValueError(f"rows are rounded to fp16 or bf16, not {rounded}")
    return _row_by_row("round_rows.cu", f"round_rows<{_FORMATS[rounded]}>", rows, -(-inner // 4))


def row_scales(rows: int) -> Launch:
    """Find with which power of two each row fits fp16; a warp for each."""
    warps = _MAX_THREADS // _WARP
    return Launch("row_scales.cu", "row_scales", (-(-rows // warps), 1), _MAX_THREADS)


def scale_rows(rows: int, columns: int) -> Launch:
    """Multiply each row of fp32 [rows, columns] by its scale, 4 numbers a thread."""
    return _row_by_row("row_scales.cu", "scale_rows", rows, -(-columns // 4))


def widen_bf16(rows: int, width: int, aligned: bool) -> Launch:
    """Write `width` elements of each of `rows` rows of a bf16 matrix as fp32 [rows, width], 8 a thread.

    `aligned`: both begin at multiples of 16 bytes, and so does every 8th element of every row.
    """
    return _row_by_row("widen_bf16.cu", f"widen_bf16<{_flag(aligned)}>", rows, -(-width // 8))


def _in_line(program: str, kernel: str, units: int) -> Launch:
    """One thread for each unit of something that has no rows."""
    return Launch(program, kernel, (-(-units // _MAX_THREADS), 1), _MAX_THREADS)


def _row_by_row(program: str, kernel: str, rows: int, units: int) -> Launch:
    """One thread for each unit of every row."""
    threads = min(_MAX_THREADS, -(-units // _WARP) * _WARP)
    return Launch(program, kernel, (rows, -(-units // threads)), threads)


def _by_columns(
    program: str, kernel: str, rows: int, columns: int, inner: int, chunks: int, processors: int
) -> SplitLaunch:
    """A few columns a block, whose threads walk along the inner dimension."""
    tiles = -(-columns // _COLUMNS_PER_BLOCK)
    splits, chunks_per_split = _split(chunks, _WARP, tiles, processors, most_splits(rows, columns, inner))
    warps = min(_MAX_THREADS // _WARP, -(-chunks_per_split // _WARP))
    shared_bytes = warps * rows * _COLUMNS_PER_BLOCK * 4
    launch = Launch(program, kernel, (tiles, splits), warps * _WARP, shared_bytes)
    return SplitLaunch(launch, splits, chunks_per_split)


def _split(units: int, granularity: int, tiles: int, processors: int, most: int) -> tuple[int, int]:
    """Choose splits, and units in each but the last: enough blocks for the GPU, no split empty, `most` at most."""
    wanted = min(most, -(-_BLOCKS_PER_PROCESSOR * processors // tiles))
    per_split = -(-units // wanted)
    per_split = -(-per_split // granularity) * granularity
    return -(-units // per_split), per_split


def _check_rows(rows: int) -> None:
    if not 1 <= rows <= MAX_ROWS:
        raise ValueError(f"the kernels take 1 to {MAX_ROWS} rows of x, not {rows}")


def _arguments(weight: BlockFormat) -> str:
    """The first template arguments of every kernel for blocks."""
    return f"{weight.bits}, {_FORMATS[weight.scales]}"


def _flag(value: bool) -> str:
    return "true" if value else "false"
