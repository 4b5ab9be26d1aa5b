"""Many rows of x by a float weight: a panel of W is widened and put in order, then multiplied tile by tile.

In a panel, lanes are output columns: COLUMNS of them for one element of K, then for the next.
"""

from collections.abc import Callable
from typing import Any

from numba import float32, int64, types
from numba.core import cgutils

from offload.host.kernels import quant_ir as q
from offload.host.kernels.intrinsics import F32, I64, Pointer, at, intrinsic
from offload.host.kernels.loops import LINEAR, fetch, read, stored_bytes

COLUMNS = 2 * q.LANES  # of a panel: two vectors
TILE_ROWS = 12 if q.LANES == 16 else 6  # of x: as many sums as registers hold beside a row of the panel
SLICE = 4096 // COLUMNS  # elements of K in a panel: 16 KiB, half of an L1 cache
BLOCK_ROWS = 256  # of x: a slice of them is half of an L2 cache
_UNROLLED = 4


def _columns(builder: Any, start: Any, index: Any) -> list[Any]:
    """IR for the addresses of the two vectors of a panel for one element of K."""
    place = q.offset(builder, start, index, 4 * COLUMNS)
    return [q.offset(builder, place, side * q.SPAN) for side in range(2)]


def _element(builder: Any, w: Any, row: Any, ld: Any, index: Any) -> Any:
    """IR for the address of an element of a stored weight."""
    return builder.gep(w, [builder.add(builder.mul(row, ld), index)])


@intrinsic
def new_panel(typing: Any, w: Any) -> Any:
    """Memory on the stack for a panel of W."""
    return Pointer(float32)(w), lambda context, builder, signature, args: q.scratch(builder, F32, COLUMNS * SLICE)


@intrinsic
def new_block(typing: Any, x: Any) -> Any:
    """Memory on the stack for a slice of BLOCK_ROWS rows of x, SLICE elements apart."""
    return x(x), lambda context, builder, signature, args: q.scratch(builder, F32, BLOCK_ROWS * SLICE)


@intrinsic
def copy_rows(typing: Any, x: Any, k: Any, rows: Any, depth: Any, block: Any) -> Any:
    """Bring `depth` elements of so many rows together; a power of two apart they would share few places of a cache."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        x, k, rows, depth, block = args
        whole = builder.sub(depth, builder.urem(depth, I64(q.LANES)))
        with cgutils.for_range(builder, rows) as loop:
            source, target = (_element(builder, p, loop.index, ld, I64(0)) for p, ld in ((x, k), (block, I64(SLICE))))
            with cgutils.for_range_slice(builder, I64(0), whole, I64(q.LANES), I64) as (i, _):
                values = q.load(builder, builder.gep(source, [i]), F32, q.LANES)
                q.store(builder, values, builder.gep(target, [i]))
            with cgutils.for_range_slice(builder, whole, depth, I64(1), I64) as (i, _):
                builder.store(builder.load(builder.gep(source, [i])), builder.gep(target, [i]))
        return context.get_dummy_value()

    return types.void(x, int64, int64, int64, x), generate


@intrinsic
def fill_nk(typing: Any, panel: Any, w: Any, ld: Any, count: Any, depth: Any) -> Any:
    """Put `depth` elements of `count` rows of W [N, K] into a panel, the last row again for those that are missing."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        memory, w, ld, count, depth = args
        last = builder.sub(count, I64(1))
        dtype = signature.args[1].dtype
        whole = builder.sub(depth, builder.urem(depth, I64(2 * q.LANES)))
        for side in range(2):
            rows = [q.minimum(builder, I64(side * q.LANES + i), last) for i in range(q.LANES)]
            with cgutils.for_range_slice(builder, I64(0), whole, I64(2 * q.LANES), I64) as (start, _):
                for half in range(2):
                    k = builder.add(start, I64(half * q.LANES))
                    square = [read(builder, dtype, _element(builder, w, row, ld, k), q.LANES) for row in rows]
                    for i, column in enumerate(q.transposed(builder, square)):
                        q.store(builder, column, _columns(builder, memory, builder.add(k, I64(i)))[side])
        with cgutils.for_range(builder, I64(COLUMNS)) as column:
            row = q.minimum(builder, column.index, last)
            with cgutils.for_range_slice(builder, whole, depth, I64(1), I64) as (k, _):
                value = read(builder, dtype, _element(builder, w, row, ld, k), 1)
                place = q.offset(builder, _columns(builder, memory, k)[0], column.index, 4)
                q.store(builder, value, place)
        return context.get_dummy_value()

    return types.void(panel, w, int64, int64, int64), generate


@intrinsic
def fill_kn(typing: Any, panel: Any, w: Any, ld: Any, count: Any, depth: Any) -> Any:
    """As `fill_nk`, of `count` columns of W [K, N]."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        memory, w, ld, count, depth = args
        dtype = signature.args[1].dtype
        last = builder.sub(count, I64(1))
        with cgutils.for_range(builder, depth) as loop:
            row = _element(builder, w, loop.index, ld, I64(0))
            places = _columns(builder, memory, loop.index)
            with builder.if_else(builder.icmp_signed("==", count, I64(COLUMNS))) as (whole, partly):
                with whole:
                    for side, place in enumerate(places):
                        q.store(builder, read(builder, dtype, builder.gep(row, [I64(side * q.LANES)]), q.LANES), place)
                with partly, cgutils.for_range(builder, I64(COLUMNS)) as column:
                    value = read(builder, dtype, builder.gep(row, [q.minimum(builder, column.index, last)]), 1)
                    q.store(builder, value, q.offset(builder, places[0], column.index, 4))
        return context.get_dummy_value()

    return types.void(panel, w, int64, int64, int64), generate


@intrinsic
def fetch_lines(typing: Any, w: Any, step: Any, count: Any) -> Any:
    """Bring `count` lines, `step` elements apart, into the L2 cache."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        with cgutils.for_range(builder, args[2]) as loop:
            fetch(builder, builder.gep(args[0], [builder.mul(loop.index, args[1])]), signature.args[0].dtype, 1)
        return context.get_dummy_value()

    return types.void(w, int64, int64), generate


@intrinsic
def tile(typing: Any, panel: Any, x: Any, rows: Any, depth: Any, y: Any, ldy: Any, count: Any, add: Any) -> Any:
    """Multiply `rows` rows of x, no more than TILE_ROWS, by a panel: into `count` columns of y, or `add` to them."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        memory, x, rows, depth, y, ldy, count, add = args
        last = builder.sub(rows, I64(1))
        numbers = [q.minimum(builder, I64(i), last) for i in range(TILE_ROWS)]
        xs = [_element(builder, x, number, I64(SLICE), I64(0)) for number in numbers]
        ys = [_element(builder, y, number, ldy, I64(0)) for number in numbers]
        for row in ys:
            fetch(builder, row, float32, COLUMNS)
        totals = [[cgutils.alloca_once_value(builder, q.zeros(F32, q.LANES)) for _ in range(2)] for _ in numbers]

        def element(k: Any) -> None:
            sides = [q.load(builder, place, F32, q.LANES) for place in _columns(builder, memory, k)]
            for start, pair in zip(xs, totals, strict=True):
                factor = q.splat(builder, builder.load(builder.gep(start, [k])), q.LANES)
                for total, side in zip(pair, sides, strict=True):
                    builder.store(q.fma(builder, side, factor, builder.load(total)), total)

        whole = builder.sub(depth, builder.urem(depth, I64(_UNROLLED)))
        with cgutils.for_range_slice(builder, I64(0), whole, I64(_UNROLLED), I64) as (k, _):
            for i in range(_UNROLLED):
                element(builder.add(k, I64(i)))
        with cgutils.for_range_slice(builder, whole, depth, I64(1), I64) as (k, _):
            element(k)
        q.write_tile(builder, totals, ys, count, add)
        return context.get_dummy_value()

    return types.void(panel, x, int64, int64, y, int64, int64, int64), generate


# As those of `loops.py`, they write output columns first <= n < last; one stored row is `ld` elements after the other.


def nk_many(w: Any, ld: int, first: int, last: int, x: Any, k: int, m: int, y: Any, ldy: int) -> None:
    """Many rows of x, W stored [N, K]."""
    line = 64 // stored_bytes(w)
    panel, block = new_panel(w), new_block(x)
    for m0 in range(0, m, BLOCK_ROWS):
        rows = min(BLOCK_ROWS, m - m0)
        for j in range(0, k, SLICE):
            depth = min(SLICE, k - j)
            copy_rows(at(x, m0 * k + j), k, rows, depth, block)
            for n in range(first, last, COLUMNS):
                count = min(COLUMNS, last - n)
                fill_nk(panel, at(w, n * ld + j), ld, count, depth)
                for i in range(0, rows, TILE_ROWS):
                    # A part of the next panel: all of it at once would be waited for.
                    for row in range(COLUMNS * i // rows, COLUMNS * min(i + TILE_ROWS, rows) // rows):
                        fetch_lines(at(w, (n + COLUMNS + row) * ld + j), line, depth // line)
                    target = at(y, (m0 + i) * ldy + n)
                    tile(panel, at(block, i * SLICE), min(TILE_ROWS, rows - i), depth, target, ldy, count, j)


def kn_many(w: Any, ld: int, first: int, last: int, x: Any, k: int, m: int, y: Any, ldy: int) -> None:
    """Many rows of x, W stored [K, N]."""
    panel, block = new_panel(w), new_block(x)
    for m0 in range(0, m, BLOCK_ROWS):
        rows = min(BLOCK_ROWS, m - m0)
        for j in range(0, k, SLICE):
            depth = min(SLICE, k - j)
            copy_rows(at(x, m0 * k + j), k, rows, depth, block)
            for n in range(first, last, COLUMNS):
                count = min(COLUMNS, last - n)
                fill_kn(panel, at(w, j * ld + n), ld, count, depth)
                for i in range(0, rows, TILE_ROWS):
                    row, end = depth * i // rows, depth * min(i + TILE_ROWS, rows) // rows
                    fetch_lines(at(w, (j + row) * ld + n + COLUMNS), ld, end - row)
                    target = at(y, (m0 + i) * ldy + n)
                    tile(panel, at(block, i * SLICE), min(TILE_ROWS, rows - i), depth, target, ldy, count, j)


SIGNATURES: dict[Callable[..., None], tuple[Any, ...]] = {nk_many: LINEAR, kn_many: LINEAR}
