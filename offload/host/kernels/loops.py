"""The loops of one Linear on the CPU: y = x @ W straight from the stored weight, and roundings.

The pointer's type carries the format: float32, int16 (the bits of an fp16) or uint16 (the bits of a bf16).
"""

import functools
from collections.abc import Callable
from typing import Any

from llvmlite import binding, ir
from numba import float32, int16, int64, types, uint16
from numba.core import cgutils

from offload.host.kernels.intrinsics import F32, I16, I32, I64, Pointer, at, intrinsic

# Vectors are spelled out, since what LLVM makes of the plain loops is up to twice slower.
LANES = 16 if binding.get_host_cpu_features().get("avx512f") else 8
TILE = 32  # KN: columns swept at once; one cache line of a half format
BAND = 12  # KN: rows of W swept at once, so that y is seldom touched; 16 rows often fall into one cache set
FEW = 4  # rows of x that share one pass over W
# Bytes of x and one row of W beyond which an L1 cache of 32 KiB has lost x when the next row needs it.
LONG_BYTES = 28 << 10
AHEAD_BYTES = 12 << 10  # of several rows of W; hardware does not see that one row goes on in the next but two

_FMA = ("contract",)  # allows fused multiply-add, and nothing that would lose a NaN or an infinity


def _many(kind: Any, lanes: int) -> Any:
    """A vector type, or for one lane the plain type: LLVM vectorises no loop that has vectors in it."""
    return ir.VectorType(kind, lanes) if lanes > 1 else kind


def read(builder: Any, dtype: Any, pointer: Any, lanes: int) -> Any:
    """IR that loads `lanes` stored elements at any alignment and widens them to fp32."""
    if dtype == float32:
        return builder.load(builder.bitcast(pointer, _many(F32, lanes).as_pointer()), align=1)
    floats, words = _many(F32, lanes), _many(I32, lanes)
    bits = builder.load(builder.bitcast(pointer, _many(I16, lanes).as_pointer()), align=1)
    if dtype == int16:
        return builder.fpext(builder.bitcast(bits, _many(ir.HalfType(), lanes)), floats)
    shift = ir.Constant(words, [16] * lanes if lanes > 1 else 16)
    return builder.bitcast(builder.shl(builder.zext(bits, words), shift), floats)


def _fma(builder: Any, a: Any, b: Any, total: Any) -> Any:
    """IR for total + a * b, into the variable `total`."""
    builder.store(builder.fadd(builder.load(total), builder.fmul(a, b, flags=_FMA), flags=_FMA), total)


def fetch(builder: Any, pointer: Any, dtype: Any, lanes: int) -> None:
    """IR that brings `lanes` stored elements into the L2 cache; harmless where there is no memory."""
    byte, line = ir.IntType(8).as_pointer(), 64
    kind = ir.FunctionType(ir.VoidType(), [byte, I32, I32, I32])
    prefetch = builder.module.declare_intrinsic("llvm.prefetch", [byte], kind)
    for start in range(0, lanes * dtype.bitwidth // 8, line):
        address = builder.gep(builder.bitcast(pointer, byte), [I64(start)])
        builder.call(prefetch, [address, I32(0), I32(2), I32(1)])  # to read, for L2, data


def _folded(builder: Any, vector: Any, lanes: int) -> Any:
    """IR that adds the parts of a vector, of so many lanes each."""
    parts = [
        builder.shuffle_vector(vector, vector, ir.Constant(ir.VectorType(I32, lanes), list(range(i, i + lanes))))
        for i in range(0, vector.type.count, lanes)
    ]
    return functools.reduce(builder.fadd, parts)


@intrinsic
def load(typing: Any, pointer: Any, index: Any) -> Any:
    """`pointer[index]` as fp32."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return read(builder, pointer.dtype, builder.gep(args[0], [args[1]]), 1)

    return float32(pointer, int64), generate


@intrinsic
def store(typing: Any, pointer: Any, index: Any, value: Any) -> Any:
    """`pointer[index] = value`, rounded to nearest even; a NaN stays one, fp16 overflows to infinity."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        value = args[2]
        if pointer.dtype == int16:
            value = builder.bitcast(builder.fptrunc(value, ir.HalfType()), I16)
        elif pointer.dtype == uint16:
            bits = builder.bitcast(value, I32)
            high = builder.lshr(bits, I32(16))
            rounded = builder.add(builder.add(bits, I32(0x7FFF)), builder.and_(high, I32(1)))
            quiet = builder.or_(high, I32(0x40))  # rounding could carry a NaN's bits over to infinity
            is_nan = builder.fcmp_unordered("uno", value, value)
            value = builder.trunc(builder.select(is_nan, quiet, builder.lshr(rounded, I32(16))), I16)
        builder.store(value, builder.gep(args[0], [args[1]]), align=2)
        return context.get_dummy_value()

    return types.void(pointer, int64, float32), generate


@intrinsic
def stored_bytes(typing: Any, pointer: Any) -> Any:
    """The size of a stored element."""
    size = pointer.dtype.bitwidth // 8
    return int64(pointer), lambda context, builder, signature, args: I64(size)


def _dots(rows: Any, xs: Any, fetches: bool) -> tuple[Any, Any]:
    """The result of `dots` or `dots_ahead`, and what makes its IR."""
    # A single product needs several independent sums to hide the latency of an FMA.
    lanes = 4 * LANES if len(rows) * len(xs) == 1 else LANES
    result = types.UniTuple(float32, len(rows) * len(xs))

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        ws = [builder.extract_value(args[0], i) for i in range(len(rows))]
        us = [builder.extract_value(args[1], i) for i in range(len(xs))]

        def sweep(totals: list[Any], first: Any, last: Any, width: int) -> None:
            with cgutils.for_range_slice(builder, first, last, I64(width), I64) as (i, _):
                factors = [read(builder, float32, builder.gep(u, [i]), width) for u in us]
                for r, w in enumerate(ws):
                    place = builder.gep(w, [i])
                    if fetches and width > 1:
                        fetch(builder, builder.gep(place, [args[3]]), rows.dtype.dtype, width)
                    value = read(builder, rows.dtype.dtype, place, width)
                    for m, factor in enumerate(factors):
                        _fma(builder, value, factor, totals[r * len(us) + m])

        done, totals = I64(0), [ir.Constant(ir.VectorType(F32, lanes), [0.0] * lanes)] * result.count
        for width in dict.fromkeys((lanes, LANES)):
            parts = [cgutils.alloca_once_value(builder, _folded(builder, total, width)) for total in totals]
            whole = builder.sub(args[2], builder.srem(args[2], I64(width)))
            sweep(parts, done, whole, width)
            done, totals = whole, [builder.load(part) for part in parts]
        kind = ir.FunctionType(F32, [F32, ir.VectorType(F32, LANES)])
        reduce = cgutils.get_or_insert_function(builder.module, kind, f"llvm.vector.reduce.fadd.v{LANES}f32")
        sums = [builder.call(reduce, [F32(-0.0), total], fastmath=("reassoc",)) for total in totals]
        narrow = [cgutils.alloca_once_value(builder, total) for total in sums]
        sweep(narrow, done, args[2], 1)
        return cgutils.pack_array(builder, [builder.load(total) for total in narrow])

    return result, generate


@intrinsic
def dots(typing: Any, rows: Any, xs: Any, k: Any) -> Any:
    """Dot products of each of `rows` (stored weights) with each of `xs` (fp32): a tuple, row by row."""
    result, generate = _dots(rows, xs, fetches=False)
    return result(rows, xs, int64), generate


@intrinsic
def dots_ahead(typing: Any, rows: Any, xs: Any, k: Any, ahead: Any) -> Any:
    """As `dots`, and brings what is `ahead` elements further into the L2 cache."""
    result, generate = _dots(rows, xs, fetches=True)
    return result(rows, xs, int64, int64), generate


def _make_sweep(lanes: int) -> Any:
    @intrinsic
    def sweep(typing: Any, w: Any, stride: Any, rows: Any, xs: Any, ys: Any) -> Any:
        """`ys[m][:lanes] += xs[m][r] * w[r * stride :][:lanes]` over `rows`, with the sums in registers.

        Every row is another page, where hardware stops looking ahead; so tiles fetch those of the next band.
        """
        vector = _many(F32, lanes)

        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            def splat(value: Any) -> Any:
                if lanes == 1:
                    return value
                head = builder.insert_element(ir.Constant(vector, ir.Undefined), value, I32(0))
                first_lane = ir.Constant(ir.VectorType(I32, lanes), [0] * lanes)
                return builder.shuffle_vector(head, head, first_lane)

            us = [builder.extract_value(args[3], m) for m in range(len(xs))]
            sums = [builder.extract_value(args[4], m) for m in range(len(ys))]
            targets = [builder.bitcast(y, vector.as_pointer()) for y in sums]
            totals = [cgutils.alloca_once_value(builder, builder.load(target, align=4)) for target in targets]
            with cgutils.for_range(builder, args[2]) as loop:
                row = builder.gep(args[0], [builder.mul(loop.index, args[1])])
                if lanes == TILE:
                    fetch(builder, builder.gep(row, [builder.mul(args[1], I64(BAND))]), w.dtype, lanes)
                value = read(builder, w.dtype, row, lanes)
                for u, total in zip(us, totals, strict=True):
                    _fma(builder, value, splat(builder.load(builder.gep(u, [loop.index]))), total)
            for target, total in zip(targets, totals, strict=True):
                builder.store(builder.load(total), target, align=4)
            return context.get_dummy_value()

        return types.void(w, int64, int64, xs, ys), generate

    return sweep


sweep_tile, sweep_8, sweep_1 = _make_sweep(TILE), _make_sweep(8), _make_sweep(1)


# The loops write output columns first <= n < last; one stored row is `ld` elements after the other.


def nk_one(w: Any, ld: int, first: int, last: int, x: Any, k: int, m: int, y: Any, ldy: int) -> None:
    """One row of x, W stored [N, K]: one dot product a column, in the order in which W lies in memory.

    Twelve columns at once when rows are long: each reads x anew, and from beyond L1 that is more than there is of W.
    Twice as fast then, and slower otherwise. A short block repeats its last column, so that no sum depends on where
    the columns are divided.
    """
    if k * (4 + stored_bytes(w)) <= LONG_BYTES:
        for n in range(first, last):
            store(y, n, dots((at(w, n * ld),), (x,), k)[0])
        return
    end = last - 1
    for n in range(first, last, 12):
        n1, n2, n3, n4 = min(n + 1, end), min(n + 2, end), min(n + 3, end), min(n + 4, end)
        n5, n6, n7, n8 = min(n + 5, end), min(n + 6, end), min(n + 7, end), min(n + 8, end)
        n9, n10, n11 = min(n + 9, end), min(n + 10, end), min(n + 11, end)
        columns = (n, n1, n2, n3, n4, n5, n6, n7, n8, n9, n10, n11)
        rows = (at(w, n * ld), at(w, n1 * ld), at(w, n2 * ld), at(w, n3 * ld), at(w, n4 * ld), at(w, n5 * ld))
        more = (at(w, n6 * ld), at(w, n7 * ld), at(w, n8 * ld), at(w, n9 * ld), at(w, n10 * ld), at(w, n11 * ld))
        d = dots(rows + more, (x,), k)
        for i in range(12):
            store(y, columns[i], d[i])


def nk_few(w: Any, ld: int, first: int, last: int, x: Any, k: int, m: int, y: Any, ldy: int) -> None:
    """Several rows of x, W stored [N, K]: three columns by four or two of them at once, to read x a third as often.

    The first of them fetch the columns to come. A short block repeats its last row or column, which writes the same
    number again.
    """
    block = 3 * ld * stored_bytes(w)
    ahead = 3 * ld * max((AHEAD_BYTES + block - 1) // block, 1)
    for n0 in range(first, last, 3):
        n1, n2 = min(n0 + 1, last - 1), min(n0 + 2, last - 1)
        rows = (at(w, n0 * ld), at(w, n1 * ld), at(w, n2 * ld))
        m0 = 0
        while m - m0 > 2:
            m1, m2, m3 = m0 + 1, m0 + 2, min(m0 + 3, m - 1)
            xs = (at(x, m0 * k), at(x, m1 * k), at(x, m2 * k), at(x, m3 * k))
            d = dots_ahead(rows, xs, k, ahead) if m0 == 0 else dots(rows, xs, k)
            targets = (at(y, m0 * ldy), at(y, m1 * ldy), at(y, m2 * ldy), at(y, m3 * ldy))
            for i in range(FEW):
                store(targets[i], n0, d[i])
                store(targets[i], n1, d[FEW + i])
                store(targets[i], n2, d[2 * FEW + i])
            m0 += FEW
        if m0 < m:
            m1 = min(m0 + 1, m - 1)
            p = dots_ahead(rows, (at(x, m0 * k), at(x, m1 * k)), k, ahead)
            pair = (at(y, m0 * ldy), at(y, m1 * ldy))
            for i in range(2):
                store(pair[i], n0, p[i])
                store(pair[i], n1, p[2 + i])
                store(pair[i], n2, p[4 + i])


def kn_one(w: Any, ld: int, first: int, last: int, x: Any, k: int, m: int, y: Any, ldy: int) -> None:
    """One row of x, W stored [K, N]: y += x[r] * W[r] for a band of rows at a time."""
    for n in range(first, last):
        store(y, n, float32(0))
    for r in range(0, k, BAND):
        band, rows, xs = at(w, r * ld), min(BAND, k - r), (at(x, r),)
        n = first
        while n + TILE <= last:
            sweep_tile(at(band, n), ld, rows, xs, (at(y, n),))
            n += TILE
        while n + 8 <= last:
            sweep_8(at(band, n), ld, rows, xs, (at(y, n),))
            n += 8
        while n < last:
            sweep_1(at(band, n), ld, rows, xs, (at(y, n),))
            n += 1


def kn_few(w: Any, ld: int, first: int, last: int, x: Any, k: int, m: int, y: Any, ldy: int) -> None:
    """Several rows of x, W stored [K, N]: as `kn_one`, four or two of them in one sweep."""
    for i in range(m):
        for n in range(first, last):
            store(y, i * ldy + n, float32(0))
    for r in range(0, k, BAND):
        band, rows = at(w, r * ld), min(BAND, k - r)
        for n in range(first, last, TILE):
            i = 0
            if n + TILE <= last:
                while i + FEW <= m:
                    u, v = at(x, i * k + r), at(y, i * ldy + n)
                    xs = (u, at(u, k), at(u, 2 * k), at(u, 3 * k))
                    sweep_tile(at(band, n), ld, rows, xs, (v, at(v, ldy), at(v, 2 * ldy), at(v, 3 * ldy)))
                    i += FEW
                if i + 2 <= m:
                    u, v = at(x, i * k + r), at(y, i * ldy + n)
                    sweep_tile(at(band, n), ld, rows, (u, at(u, k)), (v, at(v, ldy)))
                    i += 2
                if i < m:
                    sweep_tile(at(band, n), ld, rows, (at(x, i * k + r),), (at(y, i * ldy + n),))
                    i += 1
            while i < m:
                c = n
                while c + 8 <= last:
                    sweep_8(at(band, c), ld, rows, (at(x, i * k + r),), (at(y, i * ldy + c),))
                    c += 8
                while c < last:
                    sweep_1(at(band, c), ld, rows, (at(x, i * k + r),), (at(y, i * ldy + c),))
                    c += 1
                i += 1


def expand(w: Any, ld: int, rows: int, columns: int, panel: Any) -> None:
    """Widen a block of a stored weight into the contiguous fp32 `panel`."""
    for r in range(rows):
        source, target = at(w, r * ld), at(panel, r * columns)
        for c in range(columns):
            store(target, c, load(source, c))


def cast(x: Any, y: Any, first: int, last: int) -> None:
    """y[i] = x[i] rounded to the type of y."""
    for i in range(first, last):
        store(y, i, load(x, i))


LINEAR = (None, int64, int64, int64, Pointer(float32), int64, int64, Pointer(float32), int64)
POINTERS = {"fp32": Pointer(float32), "fp16": Pointer(int16), "bf16": Pointer(uint16)}
# What each function takes; None stands for the pointer that carries the format.
SIGNATURES: dict[Callable[..., None], tuple[Any, ...]] = {
    nk_one: LINEAR,
    nk_few: LINEAR,
    kn_one: LINEAR,
    kn_few: LINEAR,
    expand: (None, int64, int64, int64, Pointer(float32)),
    cast: (Pointer(float32), None, int64, int64),
}
