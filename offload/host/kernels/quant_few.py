"""Several rows of x by a block-quantised weight: a panel of W is put in order, then multiplied by four rows at a time.

In a panel, lanes are output columns: COLUMNS of them, four bytes of K each (or one fp32), then the next four of K.
"""

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import int64, types, uint8
from numba.core import cgutils

from offload.host.kernels import quant_ir as q
from offload.host.kernels.intrinsics import F32, I32, I64, Pointer, at, intrinsic
from offload.host.kernels.quant_ir import block_of
from offload.spec.linear import BLOCKS

COLUMNS = 2 * q.LANES  # that share one pass over x
TILE_ROWS = 4
SLICE, FLOAT_SLICE = 2048, 256  # elements of K in a panel; as fp32 it has to fit in the L1 cache

_PANEL_BLOCKS = SLICE // min(BLOCKS)
_SCALE_BYTES = 4 * COLUMNS * _PANEL_BLOCKS
_PANEL_BYTES = COLUMNS * SLICE + 2 * _SCALE_BYTES + 4 * COLUMNS * FLOAT_SLICE


def _panel(builder: Any, memory: Any) -> tuple[Any, Any, Any, Any]:
    """The parts of a panel: bytes; scales and negative zero points, both fp32 [block, COLUMNS]; and fp32 weights."""
    scales = COLUMNS * SLICE
    starts = (0, scales, scales + _SCALE_BYTES, scales + 2 * _SCALE_BYTES)
    one, two, three, four = (q.offset(builder, memory, start) for start in starts)
    return one, two, three, four


def _sides(builder: Any, start: Any, index: Any, kind: Any, lanes: int) -> list[Any]:
    """IR that loads the two vectors of COLUMNS words at `index`."""
    place = q.offset(builder, start, index, 4 * COLUMNS)
    return [q.load(builder, q.offset(builder, place, side * q.SPAN), kind, lanes) for side in range(2)]


@intrinsic
def new_panel(typing: Any, w: Any) -> Any:
    """Memory on the stack for a panel of W."""
    return Pointer(uint8)(w), lambda context, builder, signature, args: q.scratch(builder, q.I8, _PANEL_BYTES)


def _row(builder: Any, n: Any, count: Any, column: Any) -> Any:
    """The stored row of a column of the panel; columns that are missing repeat the last one."""
    return builder.add(n, q.minimum(builder, column, builder.sub(count, I64(1))))


@intrinsic
def fill_weights(typing: Any, panel: Any, w: Any, blocks: Any, n: Any, count: Any, first: Any, depth: Any) -> Any:
    """Put blocks first to first + depth of `count` columns from `n` on into a panel, as bytes."""
    bits, block = q.KINDS[w.dtype]
    block_bytes, chunk_bytes = block * bits // 8, q.SPAN * bits // 8
    span = min(block, q.SPAN)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        memory, w, blocks, n, count, first, depth = args
        values, _, _, _ = _panel(builder, memory)
        row_bytes = builder.mul(blocks, I64(block_bytes))
        start = q.offset(builder, w, first, block_bytes)
        nbytes = builder.mul(depth, I64(block_bytes))
        whole, rest = builder.udiv(nbytes, I64(chunk_bytes)), builder.urem(nbytes, I64(chunk_bytes))

        def chunk(rows: list[Any], number: Any, side: int) -> None:
            loaded = [q.weights(builder, row, bits, q.SPAN, span) for row in rows]
            words = [builder.bitcast(row, q.vector(I32, q.LANES)) for row in loaded]
            place = q.offset(builder, values, number, 4 * COLUMNS * q.LANES)
            for i, column in enumerate(q.transposed(builder, words)):
                q.store(builder, column, q.offset(builder, place, i * 4 * COLUMNS + side * q.SPAN))

        for side in range(2):
            columns = [_row(builder, n, count, I64(side * q.LANES + i)) for i in range(q.LANES)]
            rows = [q.offset(builder, start, builder.mul(column, row_bytes)) for column in columns]
            with cgutils.for_range(builder, whole) as loop:
                chunk([q.offset(builder, row, loop.index, chunk_bytes) for row in rows], loop.index, side)
            with builder.if_then(builder.icmp_signed(">", rest, I64(0))):  # not to read behind the weight
                copies = [q.scratch(builder, q.I8, chunk_bytes) for _ in rows]
                for row, copy in zip(rows, copies, strict=True):
                    end = q.offset(builder, row, whole, chunk_bytes)
                    with cgutils.for_range(builder, rest) as loop:
                        builder.store(builder.load(builder.gep(end, [loop.index])), builder.gep(copy, [loop.index]))
                chunk(copies, whole, side)
        return context.get_dummy_value()

    return types.void(panel, w, int64, int64, int64, int64, int64), generate


@intrinsic
def fill_scales(
    typing: Any, panel: Any, w: Any, scales: Any, zeros: Any, blocks: Any, n: Any, count: Any, first: Any, depth: Any
) -> Any:
    """As `fill_weights`, for scales and zero points."""
    bits = q.KINDS[w.dtype][0]

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        memory, _, scale_start, zeros, blocks, n, count, first, depth = args
        _, panel_scales, panel_zeros, _ = _panel(builder, memory)
        whole = builder.sub(depth, builder.urem(depth, I64(q.LANES)))

        def load_scales(row: Any, block: Any, lanes: int) -> Any:
            index = builder.add(builder.mul(row, blocks), block)
            return q.scales(builder, scales.dtype, scale_start, index, lanes)

        for side in range(2):
            rows = [_row(builder, n, count, I64(side * q.LANES + i)) for i in range(q.LANES)]
            with cgutils.for_range_slice(builder, I64(0), whole, I64(q.LANES), I64) as (i, _):
                square = [load_scales(row, builder.add(first, i), q.LANES) for row in rows]
                place = q.offset(builder, panel_scales, i, 4 * COLUMNS)
                for j, column in enumerate(q.transposed(builder, square)):
                    q.store(builder, column, q.offset(builder, place, j * 4 * COLUMNS + side * q.SPAN))
        middle = ir.Constant(q.vector(F32, q.LANES), [-(1 << (bits - 1))] * q.LANES)
        with cgutils.for_range(builder, depth) as loop:
            for side in range(2):
                place = q.offset(builder, panel_zeros, loop.index, 4 * COLUMNS)
                q.store(builder, middle, q.offset(builder, place, side * q.SPAN))
        with cgutils.for_range(builder, I64(COLUMNS)) as column:
            row = _row(builder, n, count, column.index)
            with cgutils.for_range_slice(builder, whole, depth, I64(1), I64) as (i, _):
                place = q.offset(builder, q.offset(builder, panel_scales, i, 4 * COLUMNS), column.index, 4)
                q.store(builder, load_scales(row, builder.add(first, i), 1), place)
            with builder.if_then(cgutils.is_not_null(builder, zeros)), cgutils.for_range(builder, depth) as loop:
                place = q.offset(builder, q.offset(builder, panel_zeros, loop.index, 4 * COLUMNS), column.index, 4)
                zero = q.zero_point(builder, zeros, bits, row, blocks, builder.add(first, loop.index))
                q.store(builder, builder.fneg(zero), place)
        return context.get_dummy_value()

    return types.void(panel, w, scales, zeros, int64, int64, int64, int64, int64), generate


def _row_starts(builder: Any, base: Any, m: Any, rows: Any, row_bytes: Any) -> list[Any]:
    """Point to rows m to m + 3; those beyond the last are the last."""
    last = builder.sub(rows, I64(1))
    return [
        q.offset(builder, base, builder.mul(q.minimum(builder, builder.add(m, I64(i)), last), row_bytes))
        for i in range(TILE_ROWS)
    ]


def _number(builder: Any, start: Any, index: Any) -> Any:
    """IR that loads an fp32 number into all lanes."""
    place = builder.bitcast(q.offset(builder, start, index, 4), F32.as_pointer())
    return q.splat(builder, builder.load(place, align=1), q.LANES)


def _tile_sums(builder: Any) -> list[list[Any]]:
    """Variables for the sums of a tile, zero."""
    zeros = q.zeros(F32, q.LANES)
    return [[cgutils.alloca_once_value(builder, zeros) for _ in range(2)] for _ in range(TILE_ROWS)]


@intrinsic
def int8_tile(
    typing: Any, w: Any, panel: Any, x: Any, xs: Any, sums: Any, m: Any, rows: Any, blocks: Any, first: Any, depth: Any,
    y: Any, ldy: Any, count: Any,
) -> Any:  # fmt: skip
    """Add a panel's part of rows m to m + 3 of x @ W to y, or begin y with it."""
    block = q.KINDS[w.dtype][1]

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        memory, x, xs, sums, m, rows, blocks, first, depth, y, ldy, count = args[1:]
        values, panel_scales, panel_zeros, _ = _panel(builder, memory)
        row_starts = _row_starts(builder, x, m, rows, builder.mul(blocks, I64(block)))
        scale_starts, sum_starts = (_row_starts(builder, p, m, rows, builder.mul(blocks, I64(4))) for p in (xs, sums))
        floats, words = q.vector(F32, q.LANES), q.vector(I32, q.LANES)
        totals = _tile_sums(builder)
        with cgutils.for_range(builder, depth) as loop:
            b = builder.add(first, loop.index)
            dots = [[cgutils.alloca_once(builder, words) for _ in range(2)] for _ in range(TILE_ROWS)]
            for pair in dots:
                for dot in pair:
                    builder.store(q.zeros(I32, q.LANES), dot)
            block_start = q.offset(builder, values, loop.index, COLUMNS * block)
            starts = [q.offset(builder, start, b, block) for start in row_starts]
            with cgutils.for_range_slice(builder, I64(0), I64(block // 4), I64(4), I64) as (k, _):
                for i in range(4):
                    four = builder.add(k, I64(i))
                    sides = _sides(builder, block_start, four, q.I8, q.SPAN)
                    for start, pair in zip(starts, dots, strict=True):
                        word = builder.load(
                            builder.bitcast(q.offset(builder, start, four, 4), I32.as_pointer()), align=1
                        )
                        factor = builder.bitcast(q.splat(builder, word, q.LANES), q.vector(q.I8, q.SPAN))
                        for dot, side in zip(pair, sides, strict=True):
                            builder.store(q.dot(builder, builder.load(dot), side, factor), dot)
            scale_sides = _sides(builder, panel_scales, loop.index, F32, q.LANES)
            zero_sides = _sides(builder, panel_zeros, loop.index, F32, q.LANES)
            for r in range(TILE_ROWS):
                scale, total_x = (_number(builder, starts[r], b) for starts in (scale_starts, sum_starts))
                for side in range(2):
                    # Whole numbers below 2**24, so exact in fp32 too.
                    exact = builder.sitofp(builder.load(dots[r][side]), floats)
                    exact = q.fma(builder, zero_sides[side], total_x, exact)
                    scaled = builder.fmul(exact, scale_sides[side])
                    builder.store(q.fma(builder, scaled, scale, builder.load(totals[r][side])), totals[r][side])
        targets = _row_starts(builder, y, m, rows, builder.mul(ldy, I64(4)))
        q.write_tile(builder, totals, targets, count, first)
        return context.get_dummy_value()

    return types.void(w, panel, x, xs, sums, int64, int64, int64, int64, int64, y, int64, int64), generate


def int8_few(
    w: Any, scales: Any, zeros: Any, blocks: int, first: int, last: int,
    x: Any, xs: Any, sums: Any, m: int, y: Any, ldy: int,
) -> None:  # fmt: skip
    """Several rows of x as int8."""
    panel, most = new_panel(w), SLICE // block_of(w)
    for n in range(first, last, COLUMNS):
        count = min(COLUMNS, last - n)
        for b in range(0, blocks, most):
            depth = min(most, blocks - b)
            fill_weights(panel, w, blocks, n, count, b, depth)
            fill_scales(panel, w, scales, zeros, blocks, n, count, b, depth)
            for i in range(0, m, TILE_ROWS):
                int8_tile(w, panel, x, xs, sums, i, m, blocks, b, depth, at(y, n), ldy, count)


@intrinsic
def widen_panel(typing: Any, panel: Any, w: Any, depth: Any) -> Any:
    """Make fp32 of the bytes in a panel: (byte - zero point) * scale."""
    block = q.KINDS[w.dtype][1]

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        values, scales, zeros, floats = _panel(builder, args[0])
        with cgutils.for_range(builder, args[2]) as blocks:
            scale_sides = _sides(builder, scales, blocks.index, F32, q.LANES)
            zero_sides = _sides(builder, zeros, blocks.index, F32, q.LANES)
            block_start = q.offset(builder, values, blocks.index, COLUMNS * block)
            target = q.offset(builder, floats, blocks.index, 4 * COLUMNS * block)
            with cgutils.for_range(builder, I64(block // 4)) as loop:
                four = q.offset(builder, target, loop.index, 16 * COLUMNS)
                for side, words in enumerate(_sides(builder, block_start, loop.index, I32, q.LANES)):
                    for i in range(4):
                        byte = builder.lshr(words, ir.Constant(words.type, [8 * i] * q.LANES))
                        byte = builder.and_(byte, ir.Constant(words.type, [0xFF] * q.LANES))
                        value = builder.fadd(builder.uitofp(byte, q.vector(F32, q.LANES)), zero_sides[side])
                        place = q.offset(builder, four, i * 4 * COLUMNS + side * q.SPAN)
                        q.store(builder, builder.fmul(value, scale_sides[side]), place)
        return context.get_dummy_value()

    return types.void(panel, w, int64), generate


@intrinsic
def float_tile(
    typing: Any, w: Any, panel: Any, x: Any, m: Any, rows: Any, blocks: Any, first: Any, depth: Any,
    y: Any, ldy: Any, count: Any,
) -> Any:  # fmt: skip
    """As `int8_tile`, with x and the panel in fp32."""
    block = q.KINDS[w.dtype][1]

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        memory, x, m, rows, blocks, first, depth, y, ldy, count = args[1:]
        _, _, _, floats = _panel(builder, memory)
        starts = _row_starts(builder, x, m, rows, builder.mul(blocks, I64(4 * block)))
        starts = [q.offset(builder, start, first, 4 * block) for start in starts]
        totals = _tile_sums(builder)
        with cgutils.for_range_slice(builder, I64(0), builder.mul(depth, I64(block)), I64(4), I64) as (k, _):
            for i in range(4):
                index = builder.add(k, I64(i))
                sides = _sides(builder, floats, index, F32, q.LANES)
                for start, pair in zip(starts, totals, strict=True):
                    factor = _number(builder, start, index)
                    for total, side in zip(pair, sides, strict=True):
                        builder.store(q.fma(builder, side, factor, builder.load(total)), total)
        targets = _row_starts(builder, y, m, rows, builder.mul(ldy, I64(4)))
        q.write_tile(builder, totals, targets, count, first)
        return context.get_dummy_value()

    return types.void(w, panel, x, int64, int64, int64, int64, int64, y, int64, int64), generate


def float_few(
    w: Any, scales: Any, zeros: Any, blocks: int, first: int, last: int,
    x: Any, xs: Any, sums: Any, m: int, y: Any, ldy: int,
) -> None:  # fmt: skip
    """Several rows of x in fp32."""
    panel, most = new_panel(w), FLOAT_SLICE // block_of(w)
    for n in range(first, last, COLUMNS):
        count = min(COLUMNS, last - n)
        for b in range(0, blocks, most):
            depth = min(most, blocks - b)
            fill_weights(panel, w, blocks, n, count, b, depth)
            fill_scales(panel, w, scales, zeros, blocks, n, count, b, depth)
            widen_panel(panel, w, depth)
            for i in range(0, m, TILE_ROWS):
                float_tile(w, panel, x, i, m, blocks, b, depth, at(y, n), ldy, count)


SIGNATURES: dict[Callable[..., None], tuple[Any, ...]] = {int8_few: q.LINEAR, float_few: q.LINEAR}
