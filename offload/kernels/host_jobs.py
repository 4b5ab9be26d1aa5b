"""What the threads of a launch do: share out the columns of a group, call each Linear's loops by address.

Calling by address lets one launch serve Linears of different formats, and keeps every compilation small. A
task is a table of int64 words. As in `host_loops`, nothing here may come from another file.
"""

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import extending, int64, prange, types
from numba.core import cgutils

UNIT = 32  # columns that are not divided between threads; one cache line of a half format
PANEL_COLUMNS, PANEL_K = 256, 512  # a panel of W as fp32 has to fit in half of a 1 MiB L2 cache
HEADER, ROW = 8, 8  # words of a task's header and of its row for each Linear
BLOCK_HEADER, BLOCK_ROW = 12, 10  # likewise, for weights in blocks of int8 or int4

intrinsic: Callable[[Callable[..., Any]], Any] = extending.intrinsic
_I64 = ir.IntType(64)
_F32 = ir.FloatType()


@intrinsic
def call(typing: Any, address: Any, args: Any) -> Any:
    """Call the C function at `address` with a tuple of int64; 64-bit ABIs pass addresses as integers."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        function = ir.FunctionType(ir.VoidType(), [_I64] * len(args))
        unpacked = [builder.extract_value(values[1], i) for i in range(len(args))]
        builder.call(builder.inttoptr(values[0], function.as_pointer()), unpacked)
        return context.get_dummy_value()

    return types.void(int64, types.UniTuple(int64, len(args))), generate


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
            return builder.ptrtoint(cgutils.alloca_once_value(builder, value), _I64)

        is_transposed = builder.icmp_signed("!=", transposed, _I64(0))
        flags = [boxed(builder.select(is_transposed, _I64(ord("T")), _I64(ord("N")))), boxed(_I64(ord("N")))]
        sizes, one, scale = [boxed(v) for v in (n, m, k)], boxed(_F32(1.0)), boxed(builder.sitofp(beta, _F32))
        arguments = [*flags, *sizes, one, a, boxed(lda), x, boxed(ldx), scale, y, boxed(ldy)]
        kind = ir.FunctionType(ir.VoidType(), [_I64] * len(arguments))
        builder.call(builder.inttoptr(values[0], kind.as_pointer()), arguments)
        return context.get_dummy_value()

    return types.void(int64, types.UniTuple(int64, 11)), generate


def direct(task: Any, thread: int, threads: int) -> None:
    """This thread's share of a group: one pass over the stored weights.

    Header: x, k, m, Linears, units of all of them. Row: kernel, weight, elements from one stored row to the
    next, start, stop, y, elements from one row of y to the next, units.
    """
    first, last = task[4] * thread // threads, task[4] * (thread + 1) // threads
    for i in range(task[3]):
        r = HEADER + i * ROW
        start, stop, units = task[r + 3], task[r + 4], task[r + 7]
        begin, end = start + max(first, 0) * UNIT, min(stop, start + min(last, units) * UNIT)
        first, last = first - units, last - units
        if begin < end:
            weight, ld, y, ldy = task[r + 1], task[r + 2], task[r + 5], task[r + 6]
            call(task[r], (weight, ld, begin, end, task[0], task[1], task[2], y, ldy))


def by_panels(task: Any, thread: int, threads: int) -> None:
    """As `direct`, for many rows of x: panels of W, widened to fp32, through BLAS.

    Header: then scratch, a panel for each thread, and sgemm. Row: the kernel is `expand`, or 0 when W is fp32
    and needs none; the distance of stored rows is positive for [N, K] and negative for [K, N].
    """
    x, k, m = task[0], task[1], task[2]
    panel, gemm = task[5] + thread * (4 * PANEL_COLUMNS * PANEL_K), task[6]
    first, last = task[4] * thread // threads, task[4] * (thread + 1) // threads
    for i in range(task[3]):
        r = HEADER + i * ROW
        start, stop, units = task[r + 3], task[r + 4], task[r + 7]
        begin, end = start + max(first, 0) * UNIT, min(stop, start + min(last, units) * UNIT)
        first, last = first - units, last - units
        expand, weight, y, ldy = task[r], task[r + 1], task[r + 5], task[r + 6]
        transposed, ld = int64(task[r + 2] > 0), abs(task[r + 2])
        if begin < end and expand == 0:
            a = weight + 4 * begin * (ld if transposed else 1)
            sgemm(gemm, (transposed, end - begin, m, k, a, ld, x, k, int64(0), y + 4 * begin, ldy))
        elif begin < end:
            for n in range(begin, end, PANEL_COLUMNS):
                width = min(PANEL_COLUMNS, end - n)
                for j in range(0, k, PANEL_K):
                    depth = min(PANEL_K, k - j)
                    if transposed:
                        call(expand, (weight + 2 * (n * ld + j), ld, width, depth, panel))
                    else:
                        call(expand, (weight + 2 * (j * ld + n), ld, depth, width, panel))
                    lda, beta = depth if transposed else width, int64(j > 0)
                    sgemm(gemm, (transposed, width, m, depth, panel, lda, x + 4 * j, k, beta, y + 4 * n, ldy))


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


def ready_x(task: Any, thread: int, threads: int) -> None:
    """This thread's share of the rows of x that are made ready for weights in blocks. Task: see `blocks`."""
    rows = task[2]
    first, last = rows * thread // threads, rows * (thread + 1) // threads
    call(task[10], (task[0], task[1], task[5], first, last, task[6], task[7], task[8]))


def blocks(task: Any, thread: int, threads: int) -> None:
    """This thread's share of a group whose weights are in blocks of int8 or int4.

    Header: x, k, m, Linears, units of all of them, blocks in a row; what x is made ready into: values, scales, sums,
    and the bytes from one thread's copy to the next, or 0 when there is one for all, which is ready; the kernel that
    makes x ready. Row: kernel, weight, scales, zero points, start, stop, y, elements from one row of y to the next,
    units.
    """
    own = thread * task[9]
    values, scales, sums = task[6] + own, task[7] + own, task[8] + own
    if task[9]:  # a single row is ready sooner than one thread could tell the others
        call(task[10], (task[0], task[1], task[5], int64(0), task[2], values, scales, sums))
    first, last = task[4] * thread // threads, task[4] * (thread + 1) // threads
    for i in range(task[3]):
        r = BLOCK_HEADER + i * BLOCK_ROW
        start, stop, units = task[r + 4], task[r + 5], task[r + 8]
        begin, end = start + max(first, 0) * UNIT, min(stop, start + min(last, units) * UNIT)
        first, last = first - units, last - units
        if begin < end:
            weight, weight_scales, zeros, y, ldy = task[r + 1], task[r + 2], task[r + 3], task[r + 6], task[r + 7]
            x = values, scales, sums, task[2]
            call(task[r], (weight, weight_scales, zeros, task[5], begin, end, *x, y, ldy))


def requantise(task: Any, thread: int, threads: int) -> None:
    """This thread's share of the columns. Task: kernel, weight, ld, k, blocks, start, stop, packed, scales."""
    start, count = task[5], task[6] - task[5]
    first, last = start + count * thread // threads, start + count * (thread + 1) // threads
    call(task[0], (task[1], task[2], task[3], task[4], first, last, task[7], task[8]))


def round_off(task: Any, thread: int, threads: int) -> None:
    """This thread's share of a `cast`. Task: kernel, x, y, elements."""
    count = task[3]
    call(task[0], (task[1], task[2], count * thread // threads, count * (thread + 1) // threads))


def launch(job: int, task: int, threads: int) -> None:
    """Run a job once for each of `threads` on numba's pool."""
    for thread in prange(threads):
        call(job, (task, int64(thread), threads))


_JOB = (types.CPointer(int64), int64, int64)
SIGNATURES: dict[Callable[..., None], tuple[Any, ...]] = {
    direct: _JOB,
    by_panels: _JOB,
    ready_x: _JOB,
    blocks: _JOB,
    requantise: _JOB,
    round_off: _JOB,
    gemm: (int64,) * 12,
    launch: (int64, int64, int64),
}
