"""x made ready for block-quantised weights: in the order of the kernels, block by block, padded with zeros.

As int8 every block has a scale and the sum of its int8; as fp32 it is only put in order. Where weights are int4, a
span of x has its even elements first, then the odd ones, as the low and the high halves of the bytes have them.
"""

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import int64, types
from numba.core import cgutils

from offload.host.kernels import quant_ir as q
from offload.host.kernels.intrinsics import F32, I32, at, intrinsic
from offload.host.kernels.quant_ir import block_of


@intrinsic
def padded(typing: Any, x: Any, count: Any, values: Any) -> Any:
    """A copy of `count` numbers with zeros behind them, as many as make a block."""
    block = q.KINDS[values.dtype][1]

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        copy = q.scratch(builder, F32, block)
        for i in range(0, block, 16):
            q.store(builder, q.zeros(F32, 16), q.offset(builder, copy, i, 4))
        with cgutils.for_range(builder, args[1]) as loop:
            builder.store(builder.load(builder.gep(args[0], [loop.index])), builder.gep(copy, [loop.index]))
        return copy

    return x(x, int64, values), generate


@intrinsic
def round_block(typing: Any, x: Any, values: Any, scales: Any, sums: Any, index: Any) -> Any:
    """Block `index` of x as int8: scale = largest magnitude / 127, rounded to nearest even, and the sum of the int8.

    So does onnxruntime at accuracy_level 4. A NaN or an infinity in the block makes its scale a NaN.
    """
    bits, block = q.KINDS[values.dtype]
    lanes = 16
    magic = 1.5 * 2.0**23  # added to a small number it leaves the nearest integer in the low bits

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pieces = [q.load(builder, q.offset(builder, args[0], i, 4), F32, lanes) for i in range(0, block, lanes)]
        absolute = ir.FunctionType(pieces[0].type, [pieces[0].type])
        fabs = cgutils.get_or_insert_function(builder.module, absolute, f"llvm.fabs.v{lanes}f32")
        largest, poison = q.zeros(F32, lanes), q.zeros(F32, lanes)
        for piece in pieces:
            magnitude = builder.call(fabs, [piece])
            largest = builder.select(builder.fcmp_ordered(">", magnitude, largest), magnitude, largest)
            poison = builder.fadd(poison, builder.fmul(piece, q.zeros(F32, lanes)))
        kind = ir.FunctionType(F32, [largest.type])
        maximum = cgutils.get_or_insert_function(builder.module, kind, f"llvm.vector.reduce.fmax.v{lanes}f32")
        top = builder.call(maximum, [largest])
        tiny = builder.fcmp_ordered("<", top, F32(2.0**-119))  # whose inverse is infinite
        scale = builder.fdiv(top, F32(127))
        inverse = builder.select(tiny, F32(0), builder.fdiv(F32(1), scale))
        scale = builder.select(tiny, F32(0), scale)
        scale = builder.fadd(scale, q.sum_of(builder, poison))
        factor, shift = q.splat(builder, inverse, lanes), ir.Constant(q.vector(F32, lanes), [magic] * lanes)
        words, bias = q.vector(I32, lanes), ir.Constant(q.vector(I32, lanes), [0x4B400000] * lanes)
        total, rounded = q.zeros(I32, lanes), []
        for piece in pieces:
            value = builder.bitcast(builder.fadd(builder.fmul(piece, factor), shift), words)
            rounded.append(builder.sub(value, bias))
            total = builder.add(total, rounded[-1])
        bytes_ = [builder.trunc(value, q.vector(q.I8, lanes)) for value in rounded]
        start = q.offset(builder, args[1], args[4], block)
        _store_in_order(builder, bytes_, start, bits, block)
        kind = ir.FunctionType(I32, [words])
        add = cgutils.get_or_insert_function(builder.module, kind, f"llvm.vector.reduce.add.v{lanes}i32")
        builder.store(scale, builder.gep(args[2], [args[4]]))
        builder.store(builder.sitofp(builder.call(add, [total]), F32), builder.gep(args[3], [args[4]]))
        return context.get_dummy_value()

    return types.void(x, values, scales, sums, int64), generate


@intrinsic
def copy_block(typing: Any, x: Any, values: Any, index: Any) -> Any:
    """Block `index` of x as it is, in the order of the kernels."""
    bits, block = q.KINDS[values.dtype]

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pieces = [q.load(builder, q.offset(builder, args[0], i, 4), F32, 16) for i in range(0, block, 16)]
        _store_in_order(builder, pieces, q.offset(builder, args[1], args[2], 4 * block), bits, block)
        return context.get_dummy_value()

    return types.void(x, values, int64), generate


def _store_in_order(builder: Any, pieces: list[Any], start: Any, bits: int, block: int) -> None:
    """Store a block that comes in vectors of 16 elements."""
    element_bytes = 4 if pieces[0].type.element == F32 else 1
    count, span = pieces[0].type.count, min(block, q.SPAN)
    while bits == 4 and count < span:
        pairs = zip(pieces[::2], pieces[1::2], strict=True)
        pieces = [q.pick(builder, one, other, range(2 * count)) for one, other in pairs]
        count *= 2
    for i, piece in enumerate(pieces):
        if bits == 4:
            piece = q.pick(builder, piece, piece, [*range(0, count, 2), *range(1, count, 2)])
        q.store(builder, piece, q.offset(builder, start, i * count * element_bytes))


def round_x(x: Any, k: int, blocks: int, first: int, last: int, values: Any, scales: Any, sums: Any) -> None:
    """Rows first <= m < last of x as int8 blocks."""
    block = block_of(values)
    for m in range(first, last):
        row, b = at(x, m * k), 0
        while (b + 1) * block <= k:
            round_block(at(row, b * block), values, scales, sums, m * blocks + b)
            b += 1
        if b < blocks:
            rest = padded(at(row, b * block), k - b * block, values)
            round_block(rest, values, scales, sums, m * blocks + b)


def copy_x(x: Any, k: int, blocks: int, first: int, last: int, values: Any, scales: Any, sums: Any) -> None:
    """Rows first <= m < last of x in fp32 blocks, which need neither scales nor sums."""
    block = block_of(values)
    for m in range(first, last):
        row, b = at(x, m * k), 0
        while (b + 1) * block <= k:
            copy_block(at(row, b * block), values, m * blocks + b)
            b += 1
        if b < blocks:
            copy_block(padded(at(row, b * block), k - b * block, values), values, m * blocks + b)


SIGNATURES: dict[Callable[..., None], tuple[Any, ...]] = {round_x: q.READY, copy_x: q.READY}
