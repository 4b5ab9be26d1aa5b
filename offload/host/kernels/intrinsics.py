"""What kernels share: memory by address, calls by address, and pieces of work that threads take.

Pointers are raw addresses, because a mapped file promises no alignment and no shape should cost a compilation. What is
compiled is kept under a digest of all files of this folder (`cache.py`), so kernels may be made of several.
"""

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import extending, float32, int16, int64, types

intrinsic: Callable[[Callable[..., Any]], Any] = extending.intrinsic
helper: Callable[[Callable[..., Any]], Any] = extending.register_jitable
Pointer = types.CPointer
I64, I32, I16, F32 = ir.IntType(64), ir.IntType(32), ir.IntType(16), ir.FloatType()


@intrinsic
def at(typing: Any, pointer: Any, index: Any) -> Any:
    """The address of `pointer[index]`."""
    return pointer(pointer, int64), lambda context, builder, signature, args: builder.gep(args[0], [args[1]])


@intrinsic
def load(typing: Any, pointer: Any, index: Any) -> Any:
    """`pointer[index]` of fp32 numbers."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.load(builder.gep(args[0], [args[1]]), align=4)

    return float32(pointer, int64), generate


@intrinsic
def store(typing: Any, pointer: Any, index: Any, value: Any) -> Any:
    """`pointer[index] = value`, rounded to nearest even where fp16 is stored; too large a value becomes infinite."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        value, align = args[2], 4
        if pointer.dtype == int16:
            value, align = builder.bitcast(builder.fptrunc(value, ir.HalfType()), I16), 2
        builder.store(value, builder.gep(args[0], [args[1]]), align=align)
        return context.get_dummy_value()

    return types.void(pointer, int64, float32), generate


@helper
def fill(target: Any, first: int, last: int, value: Any) -> None:
    """target[first:last] = value."""
    for i in range(first, last):
        store(target, i, value)


def c_call(builder: Any, result: Any, values: Any, count: int) -> Any:
    """IR for a call of the C function whose address and tuple of `count` int64 are `values`.

    64-bit ABIs pass addresses as integers.
    """
    kind = ir.FunctionType(result, [I64] * count)
    unpacked = [builder.extract_value(values[1], i) for i in range(count)]
    return builder.call(builder.inttoptr(values[0], kind.as_pointer()), unpacked)


@intrinsic
def call(typing: Any, function: Any, args: Any) -> Any:
    """Call the C function at the address `function` with a tuple of int64."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        c_call(builder, ir.VoidType(), values, len(args))
        return context.get_dummy_value()

    return types.void(int64, types.UniTuple(int64, len(args))), generate


@intrinsic
def increment(typing: Any, words: Any, index: Any) -> Any:
    """`words[index] += 1`, for all threads at once; gives what was there before."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.atomic_rmw("add", builder.gep(args[0], [args[1]]), I64(1), "monotonic")

    return int64(words, int64), generate


@helper
def take(pieces: Any, thread: int) -> Any:
    """The next piece for a thread: of its own range, then of the others'; the number of all when none is left."""
    for i in range(pieces[1]):
        word = 8 + 8 * ((thread + i) % pieces[1])
        if pieces[word] < pieces[word + 1]:
            piece = increment(pieces, word)
            if piece < pieces[word + 1]:
                return piece
    return pieces[0]
