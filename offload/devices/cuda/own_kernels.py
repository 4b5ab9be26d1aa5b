"""Multiply a few rows of x with weights on a GPU by our own kernels: arguments and order of the launches.

Everything is an address in device memory. What compiles and launches is handed in, so that the kernels run on the
CPU in tests. Each call only queues work on a stream.
"""

import ctypes
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from offload.devices.cuda.kernels import launch
from offload.devices.cuda.kernels.launch import Launch, SplitLaunch, block_log2, chunk_bytes, chunk_codes
from offload.plan.scratch import MAX_ROWS
from offload.spec.linear import BlockFormat, Layout, WeightFormat

# A launch and its arguments as ctypes values.
ReadyLaunch = tuple[Launch, Sequence[Any]]
# A launch, its arguments, the stream's address.
Launcher = Callable[[Launch, Sequence[Any], int], None]

_int, _long, _pointer = ctypes.c_int, ctypes.c_longlong, ctypes.c_void_p


@dataclass(frozen=True)
class FloatWeight:
    """An fp16 or bf16 weight on the device: [columns, inner] for NK, [inner, columns] for KN, contiguous."""

    address: int
    format: WeightFormat
    layout: Layout
    columns: int
    inner: int


@dataclass(frozen=True)
class BlockWeight:
    """A block-quantised weight on the device, packed as blocks.cuh says.

    `zeros` is the address of the packed zero points, 0 where there are none.
    """

    codes: int
    scales: int
    zeros: int
    format: BlockFormat
    columns: int
    inner: int


@dataclass(frozen=True)
class Int8Rows:
    """Rows of x, block-quantised: int8[rows, blocks * block], padded, and fp32 scales[rows, blocks].

    `codes` is a multiple of 16: a kernel that read elsewhere would take the whole CUDA context down.
    """

    codes: int
    scales: int
    rows: int
    block: int
    inner: int

    def __post_init__(self) -> None:
        """Raises ValueError for an address that is not aligned."""
        if self.codes % 16:
            raise ValueError(f"int8 rows begin at a multiple of 16 bytes, not at {self.codes:#x}")


@dataclass(frozen=True)
class FloatRows:
    """fp32 rows of x: [rows, inner], contiguous."""

    address: int
    rows: int
    inner: int


Weight = FloatWeight | BlockWeight
Rows = FloatRows | Int8Rows


class CudaKernels:
    """The kernels of one GPU."""

    def __init__(self, launcher: Launcher, processors: int) -> None:
        """`processors` is the number of multiprocessors to keep busy."""
        self._launch = launcher
        self._processors = processors

    def multiplications(self, weight: Weight, int8_rows: bool) -> list[Launch]:
        """List the launches of `multiply` for 1 to MAX_ROWS rows of such an x that begins at a multiple of 16 bytes."""
        every = range(1, MAX_ROWS + 1)
        if isinstance(weight, FloatWeight):
            aligned = _float_aligned(FloatRows(0, 1, weight.inner), weight)
            return [self._float(rows, weight, aligned).launch for rows in every]
        x: Rows = FloatRows(0, 1, weight.inner)
        if int8_rows:
            x = Int8Rows(0, 0, 1, weight.format.block, weight.inner)
        aligned = _blocks_aligned(x, weight)
        return [self._blocks(rows, weight, int8_rows, aligned).launch for rows in every]

    def scratch_bytes(self, rows: int, weight: Weight) -> int:
        """Bytes of device memory that `multiply` needs beside x, W and y; at most for any kind of x."""
        columns = weight.columns
        if isinstance(weight, FloatWeight):
            return self._float(rows, weight, True).scratch_bytes(rows, columns)
        return max(self._blocks(rows, weight, kind, True).scratch_bytes(rows, columns) for kind in (True, False))

    def multiply(
        self,
        x: Rows,
        weight: Weight,
        y: int,
        stream: int,
        bias: int = 0,
        scratch: int = 0,
    ) -> None:
        """Queue a `multiplication`."""
        for each, arguments in self.multiplication(x, weight, y, bias, scratch):
            self._launch(each, arguments, stream)

    def multiplication(self, x: Rows, weight: Weight, y: int, bias: int = 0, scratch: int = 0) -> list[ReadyLaunch]:
        """y = x @ W + bias: fp32[rows, columns], 1 to 8 rows, fp32[columns].

        `scratch` is `scratch_bytes` of memory that nothing else uses meanwhile; the same memory may serve all
        multiplications of a stream. Raises ValueError for operands that do not belong together.
        """
        if x.inner != weight.inner:
            raise ValueError(f"x has {x.inner} features and the weight takes {weight.inner}")
        rows, columns = x.rows, weight.columns
        if isinstance(weight, FloatWeight):
            if isinstance(x, Int8Rows):
                raise ValueError("int8 rows are for block-quantised weights")
            made = self._float(rows, weight, _float_aligned(x, weight))
            before: list[Any] = [_pointer(weight.address), _pointer(x.address)]
            sizes = [_int(columns), _int(x.inner)]
        else:
            if isinstance(x, Int8Rows) and x.block != weight.format.block:
                raise ValueError(f"x is in blocks of {x.block} and the weight in blocks of {weight.format.block}")
            made = self._blocks(rows, weight, isinstance(x, Int8Rows), _blocks_aligned(x, weight))
            before = [_pointer(weight.codes), _pointer(weight.scales), _pointer(weight.zeros)]
            before += [_pointer(x.codes), _pointer(x.scales)] if isinstance(x, Int8Rows) else [_pointer(x.address)]
            blocks = weight.format.blocks(x.inner)
            sizes = [_int(columns), _int(x.inner), _int(blocks), _int(block_log2(weight.format))]
        if made.splits == 1:
            return [(made.launch, [*before, _pointer(bias), _pointer(y), *sizes, _int(made.units_per_split)])]
        if not scratch:
            raise ValueError(f"this multiplication needs {made.scratch_bytes(rows, columns)} bytes of scratch memory")
        split = [*before, _pointer(0), _pointer(scratch), *sizes, _int(made.units_per_split)]
        parts = [_pointer(scratch), _pointer(bias), _pointer(y), _int(columns), _int(rows * columns), _int(made.splits)]
        return [(made.launch, split), (launch.sum_splits(rows, columns), parts)]

    def quantise(self, x: FloatRows, into: Int8Rows, stream: int) -> None:
        """Queue a `quantisation`."""
        self._launch(*self.quantisation(x, into), stream)

    def quantisation(self, x: FloatRows, into: Int8Rows) -> ReadyLaunch:
        """x in int8 blocks. Raises ValueError for sizes that differ."""
        if (x.rows, x.inner) != (into.rows, into.inner):
            raise ValueError(f"x is [{x.rows}, {x.inner}] and its int8 rows [{into.rows}, {into.inner}]")
        blocks = -(-x.inner // into.block)
        sizes = [_int(x.inner), _int(blocks), _int(into.block.bit_length() - 1), _int(x.rows * blocks)]
        pointers = [_pointer(x.address), _pointer(into.codes), _pointer(into.scales)]
        return launch.quantise_rows(x.rows, blocks), [*pointers, *sizes]

    def dequantise(
        self, weight: BlockWeight, start: int, stop: int, out: int, panel: WeightFormat, stream: int
    ) -> None:
        """Queue columns start <= n < stop of a weight into `out`, [stop - start, inner] in fp16 or fp32."""
        if not 0 <= start < stop <= weight.columns:
            raise ValueError(f"columns {start}:{stop} are not among {weight.columns}")
        form, inner = weight.format, weight.inner
        codes = weight.codes + start * form.code_bytes(inner)
        scales = weight.scales + start * form.blocks(inner) * form.scales.itemsize_bytes
        zeros = weight.zeros + start * form.zero_bytes(inner) if weight.zeros else 0
        aligned = codes % 4 == 0 and out % 16 == 0 and inner % 8 == 0
        pointers = [_pointer(codes), _pointer(scales), _pointer(zeros), _pointer(out)]
        sizes = [_int(inner), _int(form.blocks(inner)), _int(block_log2(form))]
        self._launch(launch.dequantise(form, panel, stop - start, inner, aligned), [*pointers, *sizes], stream)

    def fetch(self, source: int, to: int, nbytes: int, stream: int) -> None:
        """Queue a `fetching`."""
        self._launch(*self.fetching(source, to, nbytes), stream)

    def fetching(self, source: int, to: int, nbytes: int) -> ReadyLaunch:
        """A copy of pinned host memory, which is read where it is."""
        return launch.fetch(nbytes), [_pointer(source), _pointer(to), _long(nbytes)]

    def round_rows(self, x: FloatRows, out: int, rounded: WeightFormat, stream: int, scales: int = 0) -> None:
        """Queue the rounding of x to fp16 or bf16: to nearest even, as `cast_activations` on the host does.

        Rows are divided by their `scales` first, where that is no 0.
        """
        arguments = [_pointer(x.address), _pointer(scales), _pointer(out), _int(x.inner)]
        self._launch(launch.round_rows(rounded, x.rows, x.inner), arguments, stream)

    def row_scales(self, x: FloatRows, scales: int, stream: int) -> None:
        """Queue finding the powers of two, fp32[rows], which rows of x are divided by to fit fp16; mostly 1."""
        arguments = [_pointer(x.address), _pointer(scales), _int(x.inner), _int(x.rows)]
        self._launch(launch.row_scales(x.rows), arguments, stream)

    def scale_rows(self, y: int, scales: int, rows: int, columns: int, stream: int) -> None:
        """Queue multiplying rows of y, fp32[rows, columns], by their scales."""
        arguments = [_pointer(y), _pointer(scales), _int(columns)]
        self._launch(launch.scale_rows(rows, columns), arguments, stream)

    def widen_bf16(self, weight: FloatWeight, start: int, stop: int, out: int, stream: int) -> None:
        """Queue columns start <= n < stop of a bf16 weight as a panel in fp32, in the layout of the weight."""
        if not 0 <= start < stop <= weight.columns:
            raise ValueError(f"columns {start}:{stop} are not among {weight.columns}")
        if weight.layout is Layout.NK:
            rows, width, pitch, first = stop - start, weight.inner, weight.inner, start * weight.inner
        else:
            rows, width, pitch, first = weight.inner, stop - start, weight.columns, start
        source = weight.address + first * weight.format.itemsize_bytes
        aligned = source % 16 == 0 and out % 16 == 0 and width % 8 == 0 and pitch % 8 == 0
        arguments = [_pointer(source), _pointer(out), _int(pitch), _int(width)]
        self._launch(launch.widen_bf16(rows, width, aligned), arguments, stream)

    def _float(self, rows: int, weight: FloatWeight, aligned: bool) -> SplitLaunch:
        return _multiply_float(
            weight.format, weight.layout, rows, weight.columns, weight.inner, aligned, self._processors
        )

    def _blocks(self, rows: int, weight: BlockWeight, int8_rows: bool, aligned: bool) -> SplitLaunch:
        return _multiply_blocks(weight.format, int8_rows, rows, weight.columns, weight.inner, aligned, self._processors)


# Every step asks for the same few again.
_multiply_float = functools.lru_cache(1024)(launch.multiply_float)
_multiply_blocks = functools.lru_cache(1024)(launch.multiply_blocks)


def _float_aligned(x: FloatRows, weight: FloatWeight) -> bool:
    if x.address % 16 or weight.address % 16:
        return False
    if weight.layout is Layout.NK:
        return weight.inner % 8 == 0
    return weight.columns % 8 == 0 and weight.inner % 4 == 0


def _blocks_aligned(x: Rows, weight: BlockWeight) -> bool:
    if weight.codes % chunk_bytes(weight.format):
        return False
    return isinstance(x, Int8Rows) or (x.address % 16 == 0 and x.inner % chunk_codes(weight.format) == 0)
