"""Which kernel multiplies what, and with how many threads: pure arithmetic on shapes.

The weight is shared out between blocks by columns. Where that gives too few blocks to keep a GPU busy, the inner
dimension is split between blocks as well: their parts go to a scratch buffer, which a second kernel adds up in a
fixed order. So the same launch gives the same bits every time.
"""

from dataclasses import dataclass

from offload.specs import Layout, WeightFormat

MAX_ROWS = 8  # rows of x that a kernel takes; for more a GEMM on tensor cores is the better choice
MIN_BLOCK, MAX_BLOCK = 16, 256  # numbers that share a scale, a power of two

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
class Multiplication:
    """The launch of a multiplication, whose inner dimension is cut into `splits` of `units_per_split`.

    A unit is what one thread takes at a time: a chunk of a column, or a few rows of a [K, N] weight.
    """

    launch: Launch
    splits: int
    units_per_split: int

    def scratch_bytes(self, rows: int, columns: int) -> int:
        """Bytes that the splits' parts take, fp32[splits, rows, columns]; 0 when there is one split."""
        return self.splits * rows * columns * 4 if self.splits > 1 else 0


@dataclass(frozen=True)
class BlockFormat:
    """How a block-quantised weight is stored: see blocks.cuh."""

    bits: int
    block: int
    scales: WeightFormat  # FP16 or FP32

    def __post_init__(self) -> None:
        """Raises ValueError for what no kernel reads."""
        if self.bits not in (4, 8) or self.scales not in (WeightFormat.FP16, WeightFormat.FP32):
            raise ValueError(f"no kernel multiplies {self.bits}-bit blocks with {self.scales} scales")
        if not MIN_BLOCK <= self.block <= MAX_BLOCK or self.block & (self.block - 1):
            raise ValueError(f"a block has 16, 32, 64, 128 or 256 numbers, not {self.block}")

    @property
    def block_log2(self) -> int:
        """The block size as a power of two."""
        return self.block.bit_length() - 1

    @property
    def chunk_bytes(self) -> int:
        """Bytes that a thread reads at a time at most, all of one block."""
        return min(_CHUNK_BYTES, self.block * self.bits // 8)

    @property
    def chunk_numbers(self) -> int:
        """Numbers in such a chunk."""
        return self.chunk_bytes * 8 // self.bits

    def blocks(self, inner: int) -> int:
        """Blocks of one column; the last is padded."""
        return -(-inner // self.block)

    def column_bytes(self, inner: int) -> int:
        """Bytes of one column's numbers."""
        return self.blocks(inner) * self.block * self.bits // 8

    def zero_bytes(self, inner: int) -> int:
        """Bytes of one column's packed zero points."""
        return -(-self.blocks(inner) * self.bits // 8)

    @property
    def arguments(self) -> str:
        """The template arguments of the kernels."""
        return f"{self.bits}, {_FORMATS[self.scales]}"


def multiply_float(
    weight_format: WeightFormat, layout: Layout, rows: int, columns: int, inner: int, aligned: bool, processors: int
) -> Multiplication:
    """y[rows, columns] = x[rows, inner] @ W for fp16 and bf16 weights.

    `aligned`: x and W begin at multiples of 16 bytes, and so does every 8th column and, for KN, row of them.
    `processors` is the number of multiprocessors to keep busy.
    """
    _check_rows(rows)
    if weight_format not in (WeightFormat.FP16, WeightFormat.BF16):
        raise ValueError(f"no float kernel multiplies {weight_format}")
    arguments = f"<{_FORMATS[weight_format]}, {rows}, {_flag(aligned)}>"
    if layout is Layout.NK:
        return _by_columns("float_nk.cu", f"multiply_float_nk{arguments}", rows, columns, -(-inner // 8), processors)
    tiles = -(-columns // _TILE)
    deep = _MAX_THREADS // _THREADS_ACROSS  # steps that a full block takes at once
    splits, steps = _split(-(-inner // _STEP), deep, tiles, processors)
    warp_steps = _WARP // _THREADS_ACROSS
    warps = min(_MAX_THREADS // _WARP, -(-steps // warp_steps))
    launch = Launch(
        "float_kn.cu",
        f"multiply_float_kn{arguments}",
        (tiles, splits),
        warps * _WARP,
        shared_bytes=warps * rows * _TILE * 4,
    )
    return Multiplication(launch, splits, steps)


def multiply_blocks(
    weight: BlockFormat, int8_rows: bool, rows: int, columns: int, inner: int, aligned: bool, processors: int
) -> Multiplication:
    """y[rows, columns] = x[rows, inner] @ W for block-quantised weights.

    `int8_rows`: x was quantised by `quantise_rows`. `aligned`: W begins at a multiple of `chunk_bytes` and,
    unless x is int8, x at one of 16 bytes and `inner` is a multiple of `chunk_numbers`.
    """
    _check_rows(rows)
    # Unpacked weights and fp32 rows side by side take registers: the more rows, the less of a weight at a time.
    most_bytes = _CHUNK_BYTES if int8_rows or rows <= 2 else 8 if rows <= 4 else 4
    chunk_bytes = min(most_bytes, weight.chunk_bytes)
    arguments = f"<{weight.arguments}, {chunk_bytes // 4}, {rows}, {_flag(aligned)}>"
    name = "blocks_int8" if int8_rows else "blocks_float"
    chunks = -(-inner * weight.bits // (8 * chunk_bytes))
    return _by_columns(f"{name}.cu", f"multiply_{name}{arguments}", rows, columns, chunks, processors)


def sum_splits(rows: int, columns: int) -> Launch:
    """Add up the parts of a multiplication with several splits."""
    return Launch("sum_splits.cu", "sum_splits", (-(-rows * columns // _MAX_THREADS), 1), _MAX_THREADS)


def quantise_rows(rows: int, blocks: int) -> Launch:
    """Quantise x[rows, inner] to int8 in so many blocks a row; a warp for each."""
    warps = _MAX_THREADS // _WARP
    return Launch("quantise_rows.cu", "quantise_rows", (-(-rows * blocks // warps), 1), _MAX_THREADS)


def dequantise(weight: BlockFormat, panel: WeightFormat, columns: int, inner: int, aligned: bool) -> Launch:
    """Write `columns` of a block-quantised weight as a dense fp16 or fp32 panel [columns, inner].

    `aligned`: W and the panel begin at multiples of 16 bytes, and so does every 8th element of a panel's rows.
    """
    if panel not in (WeightFormat.FP16, WeightFormat.FP32):
        raise ValueError(f"a panel is fp16 or fp32, not {panel}")
    words = -(-inner * weight.bits // 32)
    threads = min(_MAX_THREADS, -(-words // _WARP) * _WARP)
    kernel = f"dequantise<{weight.arguments}, {_FORMATS[panel]}, {_flag(aligned)}>"
    return Launch("dequantise.cu", kernel, (columns, -(-words // threads)), threads)


def _by_columns(program: str, kernel: str, rows: int, columns: int, chunks: int, processors: int) -> Multiplication:
    """A few columns a block, whose threads walk along the inner dimension."""
    tiles = -(-columns // _COLUMNS_PER_BLOCK)
    splits, chunks_per_split = _split(chunks, _WARP, tiles, processors)
    warps = min(_MAX_THREADS // _WARP, -(-chunks_per_split // _WARP))
    shared_bytes = warps * rows * _COLUMNS_PER_BLOCK * 4
    launch = Launch(program, kernel, (tiles, splits), warps * _WARP, shared_bytes)
    return Multiplication(launch, splits, chunks_per_split)


def _split(units: int, granularity: int, tiles: int, processors: int) -> tuple[int, int]:
    """How many splits, and units in each but the last: enough blocks for the GPU, no split empty."""
    wanted = -(-_BLOCKS_PER_PROCESSOR * processors // tiles)
    per_split = -(-units // wanted)
    per_split = -(-per_split // granularity) * granularity
    return -(-units // per_split), per_split


def _check_rows(rows: int) -> None:
    if not 1 <= rows <= MAX_ROWS:
        raise ValueError(f"the kernels take 1 to {MAX_ROWS} rows of x, not {rows}")


def _flag(value: bool) -> str:
    return "true" if value else "false"
