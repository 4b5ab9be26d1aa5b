"""LLVM IR that kernels for block-quantised weights are made of: vectors, dot products of bytes, weights as bytes.

A pointer's type carries the bits and the block of a weight.
"""

from collections.abc import Sequence
from typing import Any

from llvmlite import binding, ir
from numba import float32, int16, int64, types, uint8, uint16
from numba.core import cgutils, config

from offload.host.kernels.intrinsics import F32, I16, I32, I64, Pointer, intrinsic
from offload.spec.linear import BLOCKS


def _has(feature: str) -> bool:
    if config.CPU_FEATURES is not None:  # the user's own choice, which numba compiles for
        return f"+{feature}" in config.CPU_FEATURES.split(",")
    return bool(binding.get_host_cpu_features().get(feature))


_WIDE = _has("avx512vnni") and _has("avx512vl") and _has("avx512bw")
_VNNI = _WIDE or (_has("avxvnni") and not _has("avx512f"))  # has u8 x s8 dot products of four
LANES = 16 if _has("avx512bw") else 8  # of 32 bits in a vector
SPAN = 4 * LANES  # bytes in a vector
HAS_TABLES = LANES == 16  # can look up 16 numbers at once

I8, _F16 = ir.IntType(8), ir.HalfType()
BYTE = I8.as_pointer()
FMA = ("contract",)

KINDS = {types.Opaque(f"int{bits}x{block}"): (bits, block) for bits in (4, 8) for block in BLOCKS}

_FLOAT_POINTERS = {"fp32": Pointer(float32), "fp16": Pointer(int16), "bf16": Pointer(uint16)}  # as in `loops`

# What the functions take. Two placeholders stand for pointers to block-quantised weights (or x), and to scales or
# weights in some float format.
BLOCKED, STORED = "blocked", "stored"
_FLOATS = Pointer(float32)
READY = (_FLOATS, int64, int64, int64, int64, BLOCKED, _FLOATS, _FLOATS)
LINEAR = (
    BLOCKED, STORED, Pointer(uint8), int64, int64, int64, BLOCKED, _FLOATS, _FLOATS, int64, _FLOATS, int64,
)  # fmt: skip


def signature(kinds: tuple[Any, ...], bits: int, block: int, stored: str) -> tuple[Any, ...]:
    """READY, LINEAR or the like as numba types, for one kind of weight and a float format."""
    kind = next(kind for kind, sizes in KINDS.items() if sizes == (bits, block))
    placeholders = {BLOCKED: Pointer(kind), STORED: _FLOAT_POINTERS[stored]}
    return tuple(placeholders[kind] if isinstance(kind, str) else kind for kind in kinds)


def vector(kind: Any, lanes: int) -> Any:
    """A vector type."""
    return ir.VectorType(kind, lanes)


def zeros(kind: Any, lanes: int) -> Any:
    """A vector of zeros."""
    return ir.Constant(vector(kind, lanes), [0] * lanes)


def offset(builder: Any, pointer: Any, index: Any, size: int = 1) -> Any:
    """IR for the address of byte `index * size`."""
    index = I64(index) if isinstance(index, int) else index
    return builder.gep(builder.bitcast(pointer, BYTE), [builder.mul(index, I64(size))])


def load(builder: Any, pointer: Any, kind: Any, lanes: int) -> Any:
    """IR that loads a vector, at any alignment."""
    return builder.load(builder.bitcast(pointer, vector(kind, lanes).as_pointer()), align=1)


def store(builder: Any, value: Any, pointer: Any) -> None:
    """IR that stores a vector, at any alignment."""
    builder.store(value, builder.bitcast(pointer, value.type.as_pointer()), align=1)


def splat(builder: Any, value: Any, lanes: int) -> Any:
    """IR for a vector of one value."""
    head = builder.insert_element(ir.Constant(vector(value.type, lanes), ir.Undefined), value, I32(0))
    return builder.shuffle_vector(head, head, zeros(I32, lanes))


def pick(builder: Any, one: Any, other: Any, lanes: Sequence[int]) -> Any:
    """IR for the elements of two joined vectors at the positions `lanes`."""
    return builder.shuffle_vector(one, other, ir.Constant(vector(I32, len(lanes)), list(lanes)))


def transposed(builder: Any, rows: list[Any]) -> list[Any]:
    """IR that turns a square of vectors: halves are exchanged between rows at ever larger distances."""
    count, width = len(rows), 1
    while width < count:
        upper = [i if not i & width else i - width + count for i in range(count)]
        lower = [i + width if not i & width else i + count for i in range(count)]
        for i in (i for i in range(count) if not i & width):
            one, other = rows[i], rows[i + width]
            rows[i], rows[i + width] = pick(builder, one, other, upper), pick(builder, one, other, lower)
        width *= 2
    return rows


def look_up(builder: Any, table: Any, indices: Any) -> Any:
    """IR for the elements of a vector of 16 floats at 16 indices, of which the lowest four bits count."""
    kind = ir.FunctionType(table.type, [table.type, indices.type])
    function = cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.avx512.permvar.sf.512")
    return builder.call(function, [table, indices])


def fma(builder: Any, a: Any, b: Any, c: Any) -> Any:
    """IR for a * b + c."""
    return builder.fadd(builder.fmul(a, b, flags=FMA), c, flags=FMA)


def sum_of(builder: Any, value: Any) -> Any:
    """IR for the sum of the lanes of a float vector, in any order."""
    kind = ir.FunctionType(F32, [F32, value.type])
    name = f"llvm.vector.reduce.fadd.v{value.type.count}f32"
    reduce = cgutils.get_or_insert_function(builder.module, kind, name)
    return builder.call(reduce, [F32(-0.0), value], fastmath=("reassoc",))


def dot(builder: Any, total: Any, w: Any, x: Any) -> Any:
    """IR for total[i] + the dot product of bytes 4i to 4i + 3 of `w`, unsigned, and `x`, signed. Exact."""
    lanes = total.type.count
    words, halves = vector(I32, lanes), vector(I16, 2 * lanes)
    if _VNNI:
        name = f"llvm.x86.avx512.vpdpbusd.{32 * lanes}"
        function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(words, [words] * 3), name)
        return builder.call(function, [total, builder.bitcast(w, words), builder.bitcast(x, words)])
    w, x = builder.bitcast(w, halves), builder.bitcast(x, halves)
    eight = ir.Constant(halves, [8] * (2 * lanes))
    pairs = (
        (builder.and_(w, ir.Constant(halves, [0xFF] * (2 * lanes))), builder.ashr(builder.shl(x, eight), eight)),
        (builder.lshr(w, eight), builder.ashr(x, eight)),
    )
    for a, b in pairs:  # LLVM finds the instruction that multiplies halves and adds neighbours
        wide = vector(I32, 2 * lanes)
        product = builder.mul(builder.sext(a, wide), builder.sext(b, wide))
        even, odd = list(range(0, 2 * lanes, 2)), list(range(1, 2 * lanes, 2))
        neighbours = builder.add(pick(builder, product, product, even), pick(builder, product, product, odd))
        total = builder.add(total, neighbours)
    return total


def weights(builder: Any, pointer: Any, bits: int, count: int, span: int) -> Any:
    """IR that loads `count` weights as bytes, in the order of x; `span` elements of int4 lie together."""
    if bits == 8:
        return load(builder, pointer, I8, count)
    packed = load(builder, pointer, I8, count // 2)
    low = builder.and_(packed, ir.Constant(packed.type, [0xF] * (count // 2)))
    high = builder.lshr(packed, ir.Constant(packed.type, [4] * (count // 2)))
    half = span // 2
    order = [part + s * half + i for s in range(count // span) for part in (0, count // 2) for i in range(half)]
    return pick(builder, low, high, order)


def scales(builder: Any, kind: Any, pointer: Any, index: Any, lanes: int) -> Any:
    """IR that loads scales as fp32; one lane is a plain number."""
    if kind == float32:
        value = load(builder, offset(builder, pointer, index, 4), F32, lanes)
    else:
        value = load(builder, offset(builder, pointer, index, 2), _F16, lanes)
        value = builder.fpext(value, vector(F32, lanes))
    return builder.extract_element(value, I32(0)) if lanes == 1 else value


def zero_point(builder: Any, zeros: Any, bits: int, row: Any, blocks: Any, block: Any) -> Any:
    """IR for the zero point of a block as fp32: the stored one, or the middle where `zeros` is null."""
    value = cgutils.alloca_once(builder, I8)
    builder.store(I8(1 << (bits - 1)), value)
    with builder.if_then(cgutils.is_not_null(builder, zeros)):
        if bits == 8:
            found = builder.load(offset(builder, zeros, builder.add(builder.mul(row, blocks), block)))
        else:
            row_bytes = builder.lshr(builder.add(blocks, I64(1)), I64(1))
            position = builder.add(builder.mul(row, row_bytes), builder.lshr(block, I64(1)))
            byte = builder.load(offset(builder, zeros, position))
            shift = builder.shl(builder.trunc(builder.and_(block, I64(1)), I8), I8(2))
            found = builder.and_(builder.lshr(byte, shift), I8(0xF))
        builder.store(found, value)
    return builder.uitofp(builder.load(value), F32)


def zero_points(builder: Any, zeros: Any, bits: int, row: Any, blocks: Any, first: Any, lanes: int) -> Any:
    """IR for stored zero points of some blocks of a row as fp32; the first block and the number are even."""
    if bits == 8:
        place = offset(builder, zeros, builder.add(builder.mul(row, blocks), first))
        found = load(builder, place, I8, lanes)
    else:
        row_bytes = builder.lshr(builder.add(blocks, I64(1)), I64(1))
        place = offset(builder, zeros, builder.add(builder.mul(row, row_bytes), builder.lshr(first, I64(1))))
        found = weights(builder, place, 4, lanes, lanes)
        half = lanes // 2  # which come as all the even ones, then the odd ones
        found = pick(builder, found, found, [i // 2 + half * (i % 2) for i in range(lanes)])
    return builder.uitofp(found, vector(F32, lanes))


def fetch(builder: Any, address: Any) -> None:
    """IR that has a cache line brought into the L1 cache; harmless where there is no memory."""
    kind = ir.FunctionType(ir.VoidType(), [BYTE, I32, I32, I32])
    prefetch = builder.module.declare_intrinsic("llvm.prefetch", [BYTE], kind)
    builder.call(prefetch, [address, I32(0), I32(3), I32(1)])  # to read, for L1, data


def minimum(builder: Any, a: Any, b: Any) -> Any:
    """IR for the smaller of two integers."""
    return builder.select(builder.icmp_signed("<", a, b), a, b)


def scratch(builder: Any, kind: Any, count: int) -> Any:
    """IR for memory on the stack."""
    memory = cgutils.alloca_once(builder, kind, size=count)
    memory.align = 64
    return memory


@intrinsic
def block_of(typing: Any, pointer: Any) -> Any:
    """Elements in a block, from the type of a pointer."""
    return int64(pointer), lambda context, builder, signature, args: I64(KINDS[pointer.dtype][1])


def write_tile(builder: Any, totals: list[list[Any]], targets: list[Any], count: Any, add: Any) -> None:
    """IR that stores a tile of sums, two vectors of fp32 a row, into `count` columns of y, or adds it to what is there.

    `totals` are memory, one for each vector; `targets` are the rows of y. Everything is read before it is written, for
    the last row may be there several times.
    """
    columns = 2 * LANES
    flat = [
        (offset(builder, target, side * SPAN), total)
        for target, pair in zip(targets, totals, strict=True)
        for side, total in enumerate(pair)
    ]
    adds = builder.icmp_signed("!=", add, I64(0))
    with builder.if_else(builder.icmp_signed("==", count, I64(columns))) as (whole, partly):
        with whole:
            with builder.if_then(adds):
                for place, total in flat:
                    builder.store(builder.fadd(load(builder, place, F32, LANES), builder.load(total)), total)
            for place, total in flat:
                store(builder, builder.load(total), place)
        with partly:
            spare = scratch(builder, F32, len(targets) * columns)
            for i, (_, total) in enumerate(flat):
                store(builder, builder.load(total), offset(builder, spare, i * SPAN))
            sums = [builder.gep(spare, [I64(r * columns)]) for r in range(len(targets))]
            ys = [builder.bitcast(target, F32.as_pointer()) for target in targets]
            with builder.if_then(adds), cgutils.for_range(builder, count) as loop:
                for row, y in zip(sums, ys, strict=True):
                    place = builder.gep(row, [loop.index])
                    before = builder.load(builder.gep(y, [loop.index]), align=1)
                    builder.store(builder.fadd(before, builder.load(place)), place)
            with cgutils.for_range(builder, count) as loop:
                for row, y in zip(sums, ys, strict=True):
                    builder.store(builder.load(builder.gep(row, [loop.index])), builder.gep(y, [loop.index]), align=1)
