"""y = x @ W on the CPU, for the columns that stay in RAM or in a mapped file."""

import ctypes
import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import threadpoolctl
from scipy.linalg import cython_blas

from offload.devices.base import HostArray
from offload.kernels import host, host_loops
from offload.kernels.host import FloatArray
from offload.kernels.host_loops import PANEL_COLUMNS, PANEL_K, TASK_HEADER, TASK_ROW, TILE
from offload.specs import Layout, WeightFormat

DECODE_ROWS = 8  # up to here one pass over W serves all rows of x; beyond, fp32 panels and BLAS are faster


@dataclass(frozen=True)
class HostColumns:
    """One Linear's share of the host work: output columns `start <= n < stop`, possibly none.

    `weight` is the whole weight, [N, K] or [K, N] as `layout` says, in the format's storage dtype; its rows are
    contiguous and its address need not be aligned.
    """

    weight: HostArray
    format: WeightFormat
    layout: Layout
    start: int
    stop: int

    @property
    def in_features(self) -> int:
        """K."""
        return int(self.weight.shape[1 if self.layout is Layout.NK else 0])

    @property
    def out_features(self) -> int:
        """N."""
        return int(self.weight.shape[0 if self.layout is Layout.NK else 1])


class HostGroup(Protocol):
    """Linears that read the same x."""

    def multiply(self, x: FloatArray, outputs: Sequence[FloatArray]) -> None:
        """Write columns [start, stop) of each Linear's y[M, N_i] = x[M, K] @ W into `outputs[i]`, and no others.

        `x` and the outputs are float32 and C-contiguous and do not overlap. Call from one thread only.
        """


class HostBackend(Protocol):
    """Something that multiplies on the CPU."""

    def group(self, columns: Sequence[HostColumns]) -> HostGroup:
        """Prepare Linears that read the same x; the weights must stay where they are."""


class NumbaBackend:
    """Multiplies fp32, fp16 and bf16 weights where they lie, without a copy in another format.

    Needs BLAS for itself: it is limited to one thread in the whole process, since each of our threads calls it.
    """

    def __init__(self, threads: int) -> None:
        """Use `threads` threads; compiles only the launcher (2 s unless cached). Raises ValueError below 1."""
        host.set_threads(threads)
        self.threads = threads
        self._sgemm = _sgemm_address()  # loads BLAS, so that the limit finds it
        self._limits = threadpoolctl.threadpool_limits(limits=1, user_api="blas")
        self._panels: npt.NDArray[np.float32] | None = None
        self.launch = host.launcher()

    def group(self, columns: Sequence[HostColumns]) -> "NumbaGroup":
        """See `HostBackend`. Raises ValueError for weights it cannot read."""
        return NumbaGroup(self, columns)

    def warm_up(self, kinds: Iterable[tuple[WeightFormat, Layout]], prefill: bool = True) -> None:
        """Compile what these kinds of weight need: 2-3 s for the first, under 1 s for others, little when cached."""
        for weight_format, layout in kinds:
            for rows in (1, 2, DECODE_ROWS + 1) if prefill else (1, 2):
                self.kernel(weight_format, layout, rows)
                self.job(rows)

    def job(self, rows: int) -> int:
        """The address of what every thread does for `rows` rows of x."""
        return host.kernel_address(host_loops.decode if rows <= DECODE_ROWS else host_loops.prefill)

    def kernel(self, weight_format: WeightFormat, layout: Layout, rows: int) -> int:
        """The address of what a job calls for one Linear; 0 when there is nothing to call."""
        if rows > DECODE_ROWS:
            is_fp32 = weight_format is WeightFormat.FP32
            return 0 if is_fp32 else host.kernel_address(host_loops.expand, weight_format)
        if layout is Layout.NK:
            function = host_loops.nk_one if rows == 1 else host_loops.nk_few
        else:
            function = host_loops.kn_one if rows == 1 else host_loops.kn_few
        return host.kernel_address(function, weight_format)

    @property
    def sgemm(self) -> int:
        """The address of BLAS's sgemm."""
        return self._sgemm

    @property
    def panels(self) -> int:
        """The address of the fp32 panels, one a thread; allocated at the first prefill."""
        if self._panels is None:
            self._panels = np.empty(self.threads * PANEL_COLUMNS * PANEL_K, np.float32)
        return int(self._panels.ctypes.data)


class NumbaGroup:
    """Linears that share x, as tables of addresses that one launch works through."""

    def __init__(self, backend: NumbaBackend, columns: Sequence[HostColumns]) -> None:
        """Raises ValueError for weights that cannot be read, or that do not read the same x."""
        self._backend = backend
        self._columns = tuple(columns)
        for column in self._columns:
            _check_weight(column)
        if len({column.in_features for column in self._columns}) > 1:
            raise ValueError("the Linears of a group must have equal numbers of input features")
        self._tables: dict[int, npt.NDArray[np.int64]] = {}
        self._table = np.zeros(TASK_HEADER, np.int64)
        self._call = (0, 0, 0)  # job, table, threads
        # The arrays of the last decode step, which come again at every step; prefill's are too big to keep alive.
        self._x: FloatArray | None = None
        self._outputs: tuple[FloatArray, ...] = ()

    def multiply(self, x: FloatArray, outputs: Sequence[FloatArray]) -> None:
        """See `HostGroup`. Raises ValueError for arrays that do not fit."""
        known = len(outputs) == len(self._outputs) and all(map(operator.is_, outputs, self._outputs))
        if not known or x is not self._x:
            self._bind(x, outputs, known)
        if self._call[2]:
            self._backend.launch(*self._call)

    def _bind(self, x: FloatArray, outputs: Sequence[FloatArray], known: bool) -> None:
        """Check the arrays and write their addresses into the table for so many rows of x."""
        if len(outputs) != len(self._columns):
            raise ValueError(f"{len(self._columns)} Linears need as many outputs, not {len(outputs)}")
        if not self._columns:
            return
        rows = len(x)
        _check_array("x", x, (rows, self._columns[0].in_features))
        if not known or rows != self._table[_ROWS]:
            for output, column in zip(outputs, self._columns, strict=True):
                _check_array("an output", output, (rows, column.out_features))
            self._table = self._table_for(rows)
            for i, output in enumerate(outputs):
                self._table[TASK_HEADER + i * TASK_ROW + _OUTPUT] = output.ctypes.data
            threads = self._backend.threads if rows and self._table[_TILES] else 0
            self._call = (self._backend.job(rows), self._table.ctypes.data, threads)
        self._table[_X], self._table[_ROWS] = x.ctypes.data, rows
        self._x, self._outputs = (x, tuple(outputs)) if rows <= DECODE_ROWS else (None, ())

    def _table_for(self, rows: int) -> npt.NDArray[np.int64]:
        """The task that `host_loops.decode` or `host_loops.prefill` describes, without x and the outputs."""
        kind = min(max(rows, 1), 2) if rows <= DECODE_ROWS else DECODE_ROWS + 1
        if kind not in self._tables:
            backend, prefill = self._backend, kind > DECODE_ROWS
            tiles = [-(-(column.stop - column.start) // TILE) for column in self._columns]
            panels, sgemm = (backend.panels, backend.sgemm) if prefill else (0, 0)
            words = [0, self._columns[0].in_features, 0, len(self._columns), sum(tiles), panels, sgemm, 0]
            for column, count in zip(self._columns, tiles, strict=True):
                kernel = backend.kernel(column.format, column.layout, kind)
                weight = column.weight.__array_interface__["data"][0]
                stride = column.weight.strides[0] // column.format.itemsize_bytes
                if prefill and column.layout is Layout.KN:
                    stride = -stride
                words += [kernel, weight, stride, column.start, column.stop, 0, column.out_features, count]
            self._tables[kind] = np.array(words, np.int64)
        return self._tables[kind]


_X, _ROWS, _TILES, _OUTPUT = 0, 2, 4, 5  # where the words are that change


def _check_weight(column: HostColumns) -> None:
    weight, wanted = column.weight, column.format
    if not wanted.is_float:
        raise ValueError(f"weights of format {wanted} are not for this backend")
    if weight.dtype != wanted.storage_dtype or weight.ndim != 2 or 0 in weight.shape:
        raise ValueError(f"an {wanted} weight is a {wanted.storage_dtype} matrix, not {weight.dtype}{weight.shape}")
    itemsize = wanted.itemsize_bytes
    row_stride, stride = weight.strides
    if (stride != itemsize and weight.shape[1] > 1) or row_stride < itemsize * weight.shape[1] or row_stride % itemsize:
        raise ValueError(f"rows of a weight must be contiguous, not strided by {weight.strides} bytes")
    if not 0 <= column.start <= column.stop <= column.out_features:
        raise ValueError(f"columns {column.start}:{column.stop} are not among {column.out_features}")


def _check_array(name: str, array: FloatArray, shape: tuple[int, int]) -> None:
    if array.dtype != np.float32 or array.shape != shape or not array.flags.c_contiguous:
        raise ValueError(f"{name} must be C-contiguous float32 {list(shape)}, not {array.dtype}{list(array.shape)}")


def _sgemm_address() -> int:
    """SciPy's sgemm as machine code: a capsule whose name is the C signature holds the address."""
    capsule = cython_blas.__pyx_capi__["sgemm"]
    name, pointer = ctypes.pythonapi.PyCapsule_GetName, ctypes.pythonapi.PyCapsule_GetPointer
    name.restype, name.argtypes = ctypes.c_char_p, (ctypes.py_object,)
    pointer.restype, pointer.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)
    return int(pointer(capsule, name(capsule)))
