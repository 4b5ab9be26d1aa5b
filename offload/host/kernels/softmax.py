"""Softmax for attention on the CPU: the scores of a block become weights, and chunks are put together.

Blocks come one after the other with a running maximum and sum (the online softmax of FlashAttention, Dao et al.
2022).
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import binding, ir
from numba import float32, int64
from numba.core import cgutils

from offload.host.kernels.intrinsics import F32, I32, I64, Pointer, at, fill, helper, intrinsic, load, store

LANES = 16 if binding.get_host_cpu_features().get("avx512f") else 8
LOWEST = np.float32(-np.inf)

Floats = Pointer(float32)
_FMA = ("contract",)


def _vector(kind: Any, lanes: int) -> Any:
    return ir.VectorType(kind, lanes) if lanes > 1 else kind


def _constant(kind: Any, value: float, lanes: int) -> Any:
    return ir.Constant(_vector(kind, lanes), [value] * lanes if lanes > 1 else value)


def _splat(builder: Any, value: Any, lanes: int) -> Any:
    if lanes == 1:
        return value
    vector = _vector(F32, lanes)
    head = builder.insert_element(ir.Constant(vector, ir.Undefined), value, I32(0))
    return builder.shuffle_vector(head, head, ir.Constant(_vector(I32, lanes), [0] * lanes))


def _single(value: float) -> float:
    return float(np.float32(value))


# exp(r) for |r| <= ln 2 / 2, as in Cephes' expf: 1 + r + r^2 * polynomial.
_EXP = [1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1]
_LN2 = (0.693359375, -2.12194440e-4)  # in two parts, the first exact
_UNDERFLOW = -87.0  # below, exp is no normal number and counts as 0


def _exp(builder: Any, x: Any, lanes: int) -> Any:
    """IR for exp(x), x <= 0: error below 2 ulp, exp(0) is 1, exp(-inf) is 0, a NaN stays one."""

    def number(value: float) -> Any:
        return _constant(F32, _single(value), lanes)

    def fma(a: Any, b: Any, c: Any) -> Any:
        return builder.fadd(builder.fmul(a, b, flags=_FMA), c, flags=_FMA)

    floats = _vector(F32, lanes)
    name = f"llvm.rint.v{lanes}f32" if lanes > 1 else "llvm.rint.f32"
    rint = cgutils.get_or_insert_function(builder.module, ir.FunctionType(floats, [floats]), name)
    normal = builder.fcmp_ordered(">=", x, number(_UNDERFLOW))
    inside = builder.select(normal, x, number(0.0))  # the conversion to integers needs a finite number
    twos = builder.call(rint, [builder.fmul(inside, number(1 / np.log(2)))])
    rest = fma(twos, number(-_LN2[1]), fma(twos, number(-_LN2[0]), inside))
    series = number(_EXP[0])
    for factor in _EXP[1:]:
        series = fma(series, rest, number(factor))
    value = builder.fadd(fma(series, builder.fmul(rest, rest), rest), number(1.0))
    exponent = builder.add(builder.fptosi(twos, _vector(I32, lanes)), _constant(I32, 127, lanes))
    power = builder.bitcast(builder.shl(exponent, _constant(I32, 23, lanes)), floats)
    is_nan = builder.fcmp_unordered("uno", x, x)
    return builder.select(normal, builder.fmul(value, power), builder.select(is_nan, x, number(0.0)))


def _sweep(builder: Any, count: Any, body: Callable[[Any, int, Any], None], initial: float, fold: Any) -> Any:
    """IR that runs `body(index, lanes, total)` over `count` elements, vectors first; gives the folded total."""
    whole = builder.sub(count, builder.srem(count, I64(LANES)))
    wide = cgutils.alloca_once_value(builder, _constant(F32, initial, LANES))
    with cgutils.for_range_slice(builder, I64(0), whole, I64(LANES), I64) as (index, _):
        body(index, LANES, wide)
    values = builder.load(wide)
    total = builder.extract_element(values, I32(0))
    for lane in range(1, LANES):
        total = fold(total, builder.extract_element(values, I32(lane)))
    narrow = cgutils.alloca_once_value(builder, total)
    with cgutils.for_range_slice(builder, whole, count, I64(1), I64) as (index, _):
        body(index, 1, narrow)
    return builder.load(narrow)


def _place(builder: Any, pointer: Any, index: Any, lanes: int) -> Any:
    return builder.bitcast(builder.gep(pointer, [index]), _vector(F32, lanes).as_pointer())


@intrinsic
def largest(typing: Any, values: Any, count: Any) -> Any:
    """The largest of `count` numbers, NaN left out; -inf when there is none."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        def larger(a: Any, b: Any) -> Any:
            return builder.select(builder.fcmp_ordered(">", b, a), b, a)

        def body(index: Any, lanes: int, total: Any) -> None:
            value = builder.load(_place(builder, args[0], index, lanes), align=4)
            builder.store(larger(builder.load(total), value), total)

        return _sweep(builder, args[1], body, float("-inf"), larger)

    return float32(values, int64), generate


@intrinsic
def weigh(typing: Any, scores: Any, count: Any, offset: Any) -> Any:
    """Replace each score by exp(score - offset), which is at most 1; gives their sum."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        def add(a: Any, b: Any) -> Any:
            return builder.fadd(a, b)

        def body(index: Any, lanes: int, total: Any) -> None:
            place = _place(builder, args[0], index, lanes)
            score = builder.load(place, align=4)
            weight = _exp(builder, builder.fsub(score, _splat(builder, args[2], lanes)), lanes)
            builder.store(weight, place, align=4)
            builder.store(add(builder.load(total), weight), total)

        return _sweep(builder, args[1], body, 0.0, add)

    return float32(scores, int64, float32), generate


@intrinsic
def exponential(typing: Any, x: Any) -> Any:
    """exp(x) for x <= 0."""
    return float32(float32), lambda context, builder, signature, args: _exp(builder, args[0], 1)


@helper
def cap(scores: Any, count: int, limit: Any) -> None:
    """Bend scores towards +-limit: limit * tanh(score / limit)."""
    for i in range(count):
        x = load(scores, i) / limit
        decay = exponential(float32(-2) * abs(x))
        bent = limit * ((float32(1) - decay) / (float32(1) + decay))
        store(scores, i, -bent if x < 0 else bent)


def soften(
    scores: Any,
    count: int,
    seen: int,
    window: int,
    rows: int,
    group: int,
    softcap: Any,
    total: Any,
    d: int,
    states: Any,
) -> None:
    """Scores [rows, count] to weights; `total` [rows, d] and `states` (maxima, then sums) follow the new maxima.

    Row r is of query r // group, which sees the keys before `seen` + r // group, `window` of them. Those it may not
    see weigh nothing. `softcap` points to the bound of scores, 0 for none.
    """
    limit = load(softcap, 0)
    for r in range(rows):
        end = seen + r // group
        low = min(max(end - window, 0), count)
        high = max(min(end, count), low)
        row = at(scores, r * count)
        fill(row, 0, low, float32(0))
        fill(row, high, count, float32(0))
        allowed = at(row, low)
        if limit > 0:
            cap(allowed, high - low, limit)
        before = load(states, r)
        after = max(before, largest(allowed, high - low))
        offset = after if after > LOWEST else float32(0)
        factor = exponential(before - offset)
        store(states, r, after)
        store(states, rows + r, load(states, rows + r) * factor + weigh(allowed, high - low, offset))
        if factor != float32(1):
            line = at(total, r * d)
            for i in range(d):
                store(line, i, load(line, i) * factor)


def join(partials: Any, chunks: int, distance: int, rows: int, r: int, d: int, total: Any) -> None:
    """Put row r of all chunks together: `total` [d], and behind it the sum of its weights.

    A chunk's partial has maxima [rows], sums [rows] and totals [rows, d]; the next one follows after `distance`.
    """
    highest = LOWEST
    for chunk in range(chunks):
        highest = max(highest, load(partials, chunk * distance + r))
    offset = highest if highest > LOWEST else float32(0)
    fill(total, 0, d + 1, float32(0))
    for chunk in range(chunks):
        partial = at(partials, chunk * distance)
        factor = exponential(load(partial, r) - offset)
        line = at(partial, 2 * rows + r * d)
        for i in range(d):
            store(total, i, load(total, i) + load(line, i) * factor)
        store(total, d, load(total, d) + load(partial, rows + r) * factor)


SIGNATURES: dict[Callable[..., None], tuple[Any, ...]] = {
    soften: (Floats, int64, int64, int64, int64, int64, Floats, Floats, int64, Floats),
    join: (Floats, int64, int64, int64, int64, int64, Floats),
}
