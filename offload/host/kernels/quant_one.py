"""One row of x by a block-quantised weight: dot products along the rows of W as it is stored."""

from collections.abc import Callable, Iterator
from typing import Any

from llvmlite import ir
from numba import float32, int64, types
from numba.core import cgutils

from offload.host.kernels import quant_ir as q
from offload.host.kernels.intrinsics import F32, I32, I64, intrinsic

CHAINS = 2  # sums that one row is added up in, to hide the latency of an FMA
AHEAD = 4096  # bytes by which a row is fetched before it is read


class _WeightRow:
    """IR of a row of W: where it begins, and what its blocks are scaled by."""

    def __init__(self, builder: Any, bits: int, block: int, scale_kind: Any, args: Any, row: Any) -> None:
        weights, self.scales, self.zeros, self.blocks = args
        self.bits, self.block, self.scale_kind, self.row = bits, block, scale_kind, row
        self.block_bytes = block * bits // 8
        self.start = q.offset(builder, weights, builder.mul(row, self.blocks), self.block_bytes)

    def chunk(self, builder: Any, block: Any, first: int, count: int) -> Any:
        """`count` weights of a block from element `first` on, as bytes."""
        start = q.offset(builder, self.start, block, self.block_bytes)
        return q.weights(builder, q.offset(builder, start, first * self.bits // 8), self.bits, count, count)

    def floats(self, builder: Any, block: Any, first: int, span: int, zero: Any) -> Iterator[tuple[int, Any]]:
        """A span of weights less their zero point as vectors of fp32, each with where it is in the order of x."""
        lanes, half = zero.type.count, span // 2
        if self.bits == 4 and q.HAS_TABLES and half >= lanes:
            levels = builder.fsub(ir.Constant(zero.type, list(range(lanes))), zero)
            start = q.offset(builder, q.offset(builder, self.start, block, self.block_bytes), first // 2)
            for i in range(0, half, lanes):
                both = builder.zext(q.load(builder, q.offset(builder, start, i), q.I8, lanes), q.vector(I32, lanes))
                yield i, q.look_up(builder, levels, both)
                high = builder.lshr(both, ir.Constant(both.type, [4] * lanes))
                yield half + i, q.look_up(builder, levels, high)
            return
        values = self.chunk(builder, block, first, span)
        for i in range(0, span, lanes):
            part = q.pick(builder, values, values, list(range(i, i + lanes)))
            weight = builder.uitofp(builder.zext(part, q.vector(I32, lanes)), zero.type)
            yield i, builder.fsub(weight, zero)

    def scale(self, builder: Any, block: Any, lanes: int) -> Any:
        """The scales of `lanes` blocks."""
        index = builder.add(builder.mul(self.row, self.blocks), block)
        return q.scales(builder, self.scale_kind, self.scales, index, lanes)

    def zero_point(self, builder: Any, block: Any) -> Any:
        """The zero point of a block as fp32."""
        return q.zero_point(builder, self.zeros, self.bits, self.row, self.blocks, block)

    def fetch(self, builder: Any, block: Any, count: int) -> None:
        """Have so many blocks ahead brought into the L1 cache."""
        start = q.offset(builder, self.start, block, self.block_bytes)
        for line in range(0, count * self.block_bytes, 64):
            q.fetch(builder, q.offset(builder, start, AHEAD + line))


@intrinsic
def int8_dot(typing: Any, w: Any, scales: Any, zeros: Any, blocks: Any, x: Any, xs: Any, sums: Any, row: Any) -> Any:
    """The dot product of a row of W with one row of x as int8."""
    bits, block = q.KINDS[w.dtype]
    span, batch = min(block, q.SPAN), 16  # scales are computed for a batch of blocks at once
    lanes = span // 4
    together = max(CHAINS, 512 // (block * bits))

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        stored = _WeightRow(builder, bits, block, scales.dtype, args[:4], args[7])
        x, xs, sums = args[4:7]
        totals = [cgutils.alloca_once_value(builder, q.zeros(F32, lanes)) for _ in range(CHAINS)]
        factors, starts = q.scratch(builder, F32, batch), q.scratch(builder, I32, batch)

        def prepare(first: Any, i: Any, width: int) -> None:
            """The scales of x times those of W, and the sums of x times the zero points."""
            b = builder.add(first, i)
            if width == 1:
                factor, total = (builder.load(builder.gep(p, [b])) for p in (xs, sums))
                start = builder.fmul(total, stored.zero_point(builder, b))
                start = builder.sub(I32(0), builder.fptosi(start, I32))
                builder.store(start, builder.gep(starts, [i]))
                builder.store(builder.fmul(factor, stored.scale(builder, b, 1)), builder.gep(factors, [i]))
                return
            factor, total = (q.load(builder, builder.gep(p, [b]), F32, width) for p in (xs, sums))
            q.store(builder, builder.fmul(factor, stored.scale(builder, b, width)), factors)
            zero = cgutils.alloca_once_value(builder, ir.Constant(total.type, [1 << (bits - 1)] * width))
            with builder.if_then(cgutils.is_not_null(builder, stored.zeros)):
                found = q.zero_points(builder, stored.zeros, bits, stored.row, stored.blocks, b, width)
                builder.store(found, zero)
            start = builder.fneg(builder.fmul(total, builder.load(zero)))
            q.store(builder, builder.fptosi(start, q.vector(I32, width)), starts)

        def multiply(first: Any, i: Any, chain: int) -> None:
            b = builder.add(first, i)
            place = q.offset(builder, x, b, block)
            start = builder.load(builder.gep(starts, [i]))
            dot = builder.insert_element(q.zeros(I32, lanes), start, I32(0))
            for j in range(0, block, span):
                part = q.load(builder, q.offset(builder, place, j), q.I8, span)
                dot = q.dot(builder, dot, stored.chunk(builder, b, j, span), part)
            factor = q.splat(builder, builder.load(builder.gep(factors, [i])), lanes)
            product = builder.sitofp(dot, q.vector(F32, lanes))
            builder.store(q.fma(builder, product, factor, builder.load(totals[chain])), totals[chain])

        whole = builder.sub(stored.blocks, builder.srem(stored.blocks, I64(batch)))
        with cgutils.for_range_slice(builder, I64(0), whole, I64(batch), I64) as (first, _):
            prepare(first, I64(0), batch)
            with cgutils.for_range_slice(builder, I64(0), I64(batch), I64(together), I64) as (i, _):
                stored.fetch(builder, builder.add(first, i), together)
                for j in range(together):
                    multiply(first, builder.add(i, I64(j)), j % CHAINS)
        rest = builder.sub(stored.blocks, whole)
        with cgutils.for_range(builder, rest) as loop:
            prepare(whole, loop.index, 1)
            multiply(whole, loop.index, 0)
        total = builder.load(totals[0])
        for other in totals[1:]:
            total = builder.fadd(total, builder.load(other))
        return q.sum_of(builder, total)

    return float32(w, scales, zeros, blocks, x, xs, sums, row), generate


@intrinsic
def float_dots(typing: Any, w: Any, scales: Any, zeros: Any, blocks: Any, x: Any, rows: Any) -> Any:
    """The dot products of some rows of W with one row of x in fp32, which is read once for all of them."""
    bits, block = q.KINDS[w.dtype]
    span, lanes = min(block, q.SPAN), min(q.LANES, block)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        numbers = [builder.extract_value(args[5], i) for i in range(len(rows))]
        stored = [_WeightRow(builder, bits, block, scales.dtype, args[:4], number) for number in numbers]
        totals = [cgutils.alloca_once_value(builder, q.zeros(F32, lanes)) for _ in stored]

        def sweep(symmetric: bool) -> None:
            with cgutils.for_range(builder, stored[0].blocks) as loop:
                b = loop.index
                place = q.offset(builder, args[4], b, 4 * block)
                inner = [q.zeros(F32, lanes) for _ in stored]
                zero_points = []
                for row in stored:
                    row.fetch(builder, b, 1)
                    zero = F32(1 << (bits - 1)) if symmetric else row.zero_point(builder, b)
                    zero_points.append(q.splat(builder, zero, lanes))
                for first in range(0, block, span):
                    parts = [
                        row.floats(builder, b, first, span, zero) for row, zero in zip(stored, zero_points, strict=True)
                    ]
                    for part in zip(*parts, strict=True):
                        start = first + part[0][0]
                        factor = q.load(builder, q.offset(builder, place, 4 * start), F32, lanes)
                        inner = [q.fma(builder, v, factor, sum_) for (_, v), sum_ in zip(part, inner, strict=True)]
                for row, sum_, total in zip(stored, inner, totals, strict=True):
                    scale = q.splat(builder, row.scale(builder, b, 1), lanes)
                    builder.store(q.fma(builder, sum_, scale, builder.load(total)), total)

        with builder.if_else(cgutils.is_null(builder, args[2])) as (middle, given):
            with middle:
                sweep(symmetric=True)
            with given:
                sweep(symmetric=False)
        return cgutils.pack_array(builder, [q.sum_of(builder, builder.load(total)) for total in totals])

    return types.UniTuple(float32, len(rows))(w, scales, zeros, blocks, x, rows), generate


@intrinsic
def put(typing: Any, y: Any, index: Any, value: Any) -> Any:
    """`y[index] = value`."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        builder.store(args[2], builder.gep(args[0], [args[1]]), align=1)
        return context.get_dummy_value()

    return types.void(y, int64, float32), generate


def int8_one(
    w: Any, scales: Any, zeros: Any, blocks: int, first: int, last: int,
    x: Any, xs: Any, sums: Any, m: int, y: Any, ldy: int,
) -> None:  # fmt: skip
    """One row of x as int8."""
    for n in range(first, last):
        put(y, n, int8_dot(w, scales, zeros, blocks, x, xs, sums, n))


def float_one(
    w: Any, scales: Any, zeros: Any, blocks: int, first: int, last: int,
    x: Any, xs: Any, sums: Any, m: int, y: Any, ldy: int,
) -> None:  # fmt: skip
    """One row of x in fp32, by four rows of W at once; a short block repeats its last."""
    for n in range(first, last, 4):
        columns = (n, min(n + 1, last - 1), min(n + 2, last - 1), min(n + 3, last - 1))
        sums = float_dots(w, scales, zeros, blocks, x, columns)
        for i in range(4):
            put(y, columns[i], sums[i])


SIGNATURES: dict[Callable[..., None], tuple[Any, ...]] = {int8_one: q.LINEAR, float_one: q.LINEAR}
