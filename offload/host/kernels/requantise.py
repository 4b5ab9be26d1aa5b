"""Float weights to blocks of int8 or int4 with fp16 scales, one block of a column at a time."""

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import float32, int16, int64, types
from numba.core import cgutils

from offload.host.kernels import quant_ir as q
from offload.host.kernels.intrinsics import F32, I32, I64, Pointer, at, intrinsic
from offload.host.kernels.quant_ir import block_of

_LANES = 16
_TURNED = 32  # columns of a [K, N] weight that are read together


def _read(builder: Any, dtype: Any, pointer: Any, lanes: int) -> Any:
    """IR that loads stored elements as fp32."""
    if dtype == float32:
        return q.load(builder, pointer, F32, lanes)
    bits = q.load(builder, pointer, ir.IntType(16), lanes)
    if dtype == int16:
        return builder.fpext(builder.bitcast(bits, q.vector(ir.HalfType(), lanes)), q.vector(F32, lanes))
    words = q.vector(I32, lanes)
    shift = ir.Constant(words, [16] * lanes)
    return builder.bitcast(builder.shl(builder.zext(bits, words), shift), q.vector(F32, lanes))


def _each(builder: Any, name: str, value: Any) -> Any:
    kind = ir.FunctionType(value.type, [value.type])
    function = cgutils.get_or_insert_function(builder.module, kind, f"llvm.{name}.v{_LANES}f32")
    return builder.call(function, [value])


def _extreme(builder: Any, pieces: list[Any], name: str) -> Any:
    """IR for the largest ("fmax") or smallest ("fmin") element."""
    best = pieces[0]
    for piece in pieces[1:]:
        best = builder.select(builder.fcmp_ordered(">" if name == "fmax" else "<", piece, best), piece, best)
    kind = ir.FunctionType(F32, [best.type])
    reduce = cgutils.get_or_insert_function(builder.module, kind, f"llvm.vector.reduce.{name}.v{_LANES}f32")
    return builder.call(reduce, [best])


def _levels(builder: Any, pieces: list[Any], scale: Any, lowest: int, highest: int) -> list[Any]:
    """IR for each element in steps of `scale`: the nearest whole number within bounds, as fp32."""
    is_zero = builder.fcmp_ordered("==", scale, F32(0))
    inverse = builder.select(is_zero, F32(0), builder.fdiv(F32(1), scale))
    factor = q.splat(builder, inverse, _LANES)
    low, high = (ir.Constant(factor.type, [bound] * _LANES) for bound in (lowest, highest))
    levels = []
    for piece in pieces:
        level = _each(builder, "rint", builder.fmul(piece, factor))
        level = builder.select(builder.fcmp_ordered(">", level, low), level, low)  # a NaN becomes the lowest
        levels.append(builder.select(builder.fcmp_ordered("<", level, high), level, high))
    return levels


def _fitted(builder: Any, pieces: list[Any], levels: list[Any], scale: Any) -> Any:
    """IR for the scale that is nearest in the sense of least squares for these levels."""
    above, below = q.zeros(F32, _LANES), q.zeros(F32, _LANES)
    for piece, level in zip(pieces, levels, strict=True):
        above = q.fma(builder, piece, level, above)
        below = q.fma(builder, level, level, below)
    above, below = q.sum_of(builder, above), q.sum_of(builder, below)
    is_zero = builder.fcmp_ordered("==", below, F32(0))
    return builder.select(is_zero, scale, builder.fdiv(above, below))


def _rounded(builder: Any, scale: Any) -> Any:
    return builder.fpext(builder.fptrunc(scale, ir.HalfType()), F32)


def _quantise(builder: Any, pieces: list[Any], bits: int, poison: Any) -> tuple[Any, list[Any]]:
    """IR for the scale, as fp16, and the levels of a block, as fp32.

    int8: scale = largest magnitude / 127. int4: the element of the largest magnitude becomes -8, as in ggml's
    Q4_0, since one level more is there below zero than above; then the scale is fitted to the levels.
    """
    high, low = _extreme(builder, pieces, "fmax"), _extreme(builder, pieces, "fmin")
    low_is_further = builder.fcmp_ordered(">", builder.fneg(low), high)
    furthest = builder.select(low_is_further, low, high)
    if bits == 8:
        magnitude = builder.select(low_is_further, builder.fneg(low), high)
        scale = _rounded(builder, builder.fdiv(magnitude, F32(127)))
        levels = _levels(builder, pieces, scale, -128, 127)
    else:
        scale = _rounded(builder, builder.fdiv(furthest, F32(-8)))
        levels = _levels(builder, pieces, scale, -8, 7)
        scale = _fitted(builder, pieces, levels, scale)
    return builder.fptrunc(builder.fadd(scale, poison), ir.HalfType()), levels


@intrinsic
def quantise_block(typing: Any, source: Any, packed: Any, scales: Any, index: Any) -> Any:
    """Quantise one block of contiguous elements into block `index` of `packed` and `scales`.

    A NaN or an infinity makes the scale of its block a NaN.
    """
    bits, block = q.KINDS[packed.dtype]

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        size = source.dtype.bitwidth // 8
        pieces = [
            _read(builder, source.dtype, q.offset(builder, args[0], i * size), _LANES) for i in range(0, block, _LANES)
        ]
        poison = q.zeros(F32, _LANES)
        for piece in pieces:
            poison = builder.fadd(poison, builder.fmul(piece, q.zeros(F32, _LANES)))
        scale, levels = _quantise(builder, pieces, bits, q.sum_of(builder, poison))
        words = q.vector(I32, _LANES)
        middle = ir.Constant(words, [1 << (bits - 1)] * _LANES)
        bytes_ = [
            builder.trunc(builder.add(builder.fptosi(level, words), middle), q.vector(q.I8, _LANES)) for level in levels
        ]
        for i, piece in enumerate(bytes_):
            if bits == 4:
                even, odd = (q.pick(builder, piece, piece, range(first, _LANES, 2)) for first in (0, 1))
                piece = builder.or_(even, builder.shl(odd, ir.Constant(odd.type, [4] * (_LANES // 2))))
            place = builder.mul(args[3], I64(block * bits // 8))
            place = builder.add(place, I64(i * _LANES * bits // 8))
            q.store(builder, piece, q.offset(builder, args[1], place))
        builder.store(builder.bitcast(scale, ir.IntType(16)), builder.gep(args[2], [args[3]]))
        return context.get_dummy_value()

    return types.void(source, packed, scales, int64), generate


@intrinsic
def copies(typing: Any, packed: Any) -> Any:
    """fp32 memory on the stack for a block of each of `_TURNED` columns."""
    count = _TURNED * q.KINDS[packed.dtype][1]
    return Pointer(float32)(packed), lambda context, builder, signature, args: q.scratch(builder, F32, count)


@intrinsic
def copy_element(typing: Any, target: Any, to: Any, source: Any, index: Any) -> Any:
    """`target[to] = source[index]`, as fp32."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        value = _read(builder, source.dtype, builder.gep(args[2], [args[3]]), 1)
        builder.store(builder.extract_element(value, I32(0)), builder.gep(args[0], [args[1]]))
        return context.get_dummy_value()

    return types.void(target, int64, source, int64), generate


@intrinsic
def clear(typing: Any, target: Any, index: Any) -> Any:
    """`target[index] = 0`."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        builder.store(F32(0), builder.gep(args[0], [args[1]]))
        return context.get_dummy_value()

    return types.void(target, int64), generate


def requantise_nk(w: Any, ld: int, k: int, blocks: int, first: int, last: int, packed: Any, scales: Any) -> None:
    """Columns first <= n < last of W stored [N, K], `ld` elements from one stored row to the next.

    The result has so many `blocks` a column, of which those of k are written.
    """
    block, rest = block_of(packed), copies(packed)
    for n in range(first, last):
        for b in range(k // block):
            quantise_block(at(w, n * ld + b * block), packed, scales, n * blocks + b)
        if k % block:
            start = k // block * block
            for i in range(block):
                if start + i < k:
                    copy_element(rest, i, w, n * ld + start + i)
                else:
                    clear(rest, i)
            quantise_block(rest, packed, scales, n * blocks + k // block)


def requantise_kn(w: Any, ld: int, k: int, blocks: int, first: int, last: int, packed: Any, scales: Any) -> None:
    """The same for W stored [K, N]: blocks of some columns are turned first."""
    block = block_of(packed)
    written, turned = (k + block - 1) // block, copies(packed)
    for n in range(first, last, _TURNED):
        columns = min(_TURNED, last - n)
        for b in range(written):
            for i in range(block):
                for c in range(columns):
                    if b * block + i < k:
                        copy_element(turned, c * block + i, w, (b * block + i) * ld + n + c)
                    else:
                        clear(turned, c * block + i)
            for c in range(columns):
                quantise_block(at(turned, c * block), packed, scales, (n + c) * blocks + b)


_WHOLE = (q.STORED, int64, int64, int64, int64, int64, q.BLOCKED, Pointer(int16))
SIGNATURES: dict[Callable[..., None], tuple[Any, ...]] = {requantise_nk: _WHOLE, requantise_kn: _WHOLE}
