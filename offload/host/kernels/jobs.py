"""Jobs of a team's threads: take pieces of a group's columns, call each Linear's loops by address.

Calling by address lets one launch serve Linears of different formats, and keeps every compilation small. A
task is a table of int64 words.
"""

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import int64, types
from numba.core import cgutils

from offload.host.kernels.intrinsics import F32, I64, call, helper, intrinsic, take

UNIT = 32  # columns that are not divided between threads; one cache line of a half format
HEADER, ROW = 6, 8  # words of a task's header and of its row for each Linear
BLOCK_HEADER, BLOCK_ROW = 12, 10  # likewise, for weights block-quantised to int8 or int4


@intrinsic
def sgemm(typing: Any, function: Any, args: Any) -> Any:
    """Row-major y[m, n] = beta * y + x[m, k] @ A through Fortran's sgemm, which sees everything transposed.

    `args` = (transposed, n, m, k, a, lda, x, ldx, beta, y, ldy) as int64; A is [n, k] when `transposed`, else
    [k, n].
    """

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        numbers = [builder.extract_value(values[1], i) for i in range(11)]
        transposed, n, m, k, a, lda, x, ldx, beta, y, ldy = numbers

        def boxed(value: Any) -> Any:
            # A little-endian int64 reads right as an int32 too, so it serves both kinds of BLAS.
            return builder.ptrtoint(cgutils.alloca_once_value(builder, value), I64)

        is_transposed = builder.icmp_signed("!=", transposed, I64(0))
        flags = [boxed(builder.select(is_transposed, I64(ord("T")), I64(ord("N")))), boxed(I64(ord("N")))]
        sizes, one, scale = [boxed(v) for v in (n, m, k)], boxed(F32(1.0)), boxed(builder.sitofp(beta, F32))
        arguments = [*flags, *sizes, one, a, boxed(lda), x, boxed(ldx), scale, y, boxed(ldy)]
        kind = ir.FunctionType(ir.VoidType(), [I64] * len(arguments))
        builder.call(builder.inttoptr(values[0], kind.as_pointer()), arguments)
        return context.get_dummy_value()

    return types.void(int64, types.UniTuple(int64, 11)), generate


@helper
def floats_piece(task: Any, first: int, last: int) -> None:
    """Units [first, last) of a group of Linears."""
    for i in range(task[3]):
        r = HEADER + i * ROW
        start, stop, units = task[r + 3], task[r + 4], task[r + 7]
        begin, end = start + max(first, 0) * UNIT, min(stop, start + min(last, units) * UNIT)
        first, last = first - units, last - units
        if begin < end:
            weight, ld, y, ldy = task[r + 1], task[r + 2], task[r + 5], task[r + 6]
            call(task[r], (weight, ld, begin, end, task[0], task[1], task[2], y, ldy))


def floats(task: Any, thread: int, pieces: Any) -> None:
    """Multiply a group.

    Header: x, k, m, Linears, units of all of them, units of a piece. Row: kernel, weight, elements from one stored row
    to the next, start, stop, y, elements from one row of y to the next, units.
    """
    piece = take(pieces, thread)
    while piece < pieces[0]:
        floats_piece(task, piece * task[5], min((piece + 1) * task[5], task[4]))
        piece = take(pieces, thread)


def gemm(
    function: int,
    transposed: int,
    n: int,
    m: int,
    k: int,
    a: int,
    lda: int,
    x: int,
    ldx: int,
    beta: int,
    y: int,
    ldy: int,
) -> None:
    """`sgemm` as a function that jobs in other files can call by address."""
    sgemm(function, (transposed, n, m, k, a, lda, x, ldx, beta, y, ldy))


def ready_x(task: Any, thread: int, pieces: Any) -> None:
    """Make rows of x ready for block-quantised weights. Task: see `blocks`."""
    rows, piece = task[2], take(pieces, thread)
    while piece < pieces[0]:
        first, last = rows * piece // pieces[0], rows * (piece + 1) // pieces[0]
        call(task[10], (task[0], task[1], task[5], first, last, task[6], task[7], task[8]))
        piece = take(pieces, thread)


@helper
def blocks_piece(task: Any, first: int, last: int, values: int, scales: int, sums: int) -> None:
    """Multiply units [first, last) of a group of block-quantised Linears; x is ready at three addresses."""
    for i in range(task[3]):
        r = BLOCK_HEADER + i * BLOCK_ROW
        start, stop, units = task[r + 4], task[r + 5], task[r + 8]
        begin, end = start + max(first, 0) * UNIT, min(stop, start + min(last, units) * UNIT)
        first, last = first - units, last - units
        if begin < end:
            weight, weight_scales, zeros, y, ldy = task[r + 1], task[r + 2], task[r + 3], task[r + 6], task[r + 7]
            x = values, scales, sums, task[2]
            call(task[r], (weight, weight_scales, zeros, task[5], begin, end, *x, y, ldy))


def blocks(task: Any, thread: int, pieces: Any) -> None:
    """Multiply a group whose weights are block-quantised to int8 or int4.

    Header: x, k, m, Linears, units of all of them, blocks in a row; what x is made ready into: values, scales, sums,
    and the bytes from one thread's copy to the next, or 0 when there is one for all, which is ready; the kernel that
    makes x ready; units of a piece. Row: kernel, weight, scales, zero points, start, stop, y, elements from one row of
    y to the next, units.
    """
    own = thread * task[9]
    values, scales, sums = task[6] + own, task[7] + own, task[8] + own
    piece = take(pieces, thread)
    if task[9] and piece < pieces[0]:  # a single row is ready sooner than one thread could tell the others
        call(task[10], (task[0], task[1], task[5], int64(0), task[2], values, scales, sums))
    while piece < pieces[0]:
        blocks_piece(task, piece * task[11], min((piece + 1) * task[11], task[4]), values, scales, sums)
        piece = take(pieces, thread)


def requantise(task: Any, thread: int, pieces: Any) -> None:
    """Quantise columns. Task: kernel, weight, ld, k, blocks, start, stop, packed, scales."""
    start, count, piece = task[5], task[6] - task[5], take(pieces, thread)
    while piece < pieces[0]:
        first, last = start + count * piece // pieces[0], start + count * (piece + 1) // pieces[0]
        call(task[0], (task[1], task[2], task[3], task[4], first, last, task[7], task[8]))
        piece = take(pieces, thread)


def round_off(task: Any, thread: int, pieces: Any) -> None:
    """Do a `cast`. Task: kernel, x, y, elements."""
    count, piece = task[3], take(pieces, thread)
    while piece < pieces[0]:
        call(task[0], (task[1], task[2], count * piece // pieces[0], count * (piece + 1) // pieces[0]))
        piece = take(pieces, thread)


_JOB = (types.CPointer(int64), int64, types.CPointer(int64))
SIGNATURES: dict[Callable[..., None], tuple[Any, ...]] = {
    floats: _JOB,
    ready_x: _JOB,
    blocks: _JOB,
    requantise: _JOB,
    round_off: _JOB,
    gemm: (int64,) * 12,
}
