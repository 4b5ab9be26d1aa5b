"""y = x @ W on the CPU, for the columns that stay in RAM or in a mapped file."""

import ctypes
import operator
from collections.abc import Iterable, Sequence
from enum import StrEnum

import numpy as np
import numpy.typing as npt
import threadpoolctl
from scipy.linalg import cython_blas

from offload.host.base import HostColumns, HostGroup
from offload.host.kernels import compiled, jobs, loops, tiles
from offload.host.kernels.jobs import HEADER, ROW, UNIT
from offload.host.quantised import QuantisedGroup, QuantisedKind, warm_up
from offload.host.team import Team, piece_units, shared_team
from offload.spec.arrays import FloatArray
from offload.spec.linear import Dense, Layout, WeightFormat

_FEW_ROWS = 12  # of x, up to which putting the weight in order takes longer than it saves
_UNITS_AT_ONCE = 3  # 96 columns: kernels go through them in twelves, eights and fours
_MANY_UNITS = 4  # 128 columns: a thread brings x together once for each piece
_DECODE_ROWS = 8  # up to here a group remembers its arrays between calls; more rows are too big to keep alive


class _Path(StrEnum):
    """Which of the kernels serves a number of rows of x."""

    ONE = "one row"
    FEW = "several rows"
    MANY = "many rows"


class NumbaBackend:
    """Multiplies fp32, fp16, bf16, int8 and int4 weights where they lie, without a copy in another format.

    BLAS is limited to one thread in the whole process, since each of our threads calls it.
    """

    def __init__(self, threads: int) -> None:
        """Starts the threads, and compiles no more than that takes: half a second unless cached.

        Raises ValueError for less than 1 thread.
        """
        if threads < 1:
            raise ValueError(f"threads must be at least 1, not {threads}")
        self.team: Team = shared_team()
        self.threads = self.team.grow(threads)
        self._sgemm = _sgemm_address()  # loads BLAS, so that the limit finds it
        self._limits = threadpoolctl.threadpool_limits(limits=1, user_api="blas")
        self._scratch = np.empty(0, np.uint8)

    def group(self, columns: Sequence[HostColumns]) -> HostGroup:
        """See `HostBackend`: one launch where all weights are floats or all have the same kind of blocks, else one
        for each kind. Raises ValueError for weights it cannot read.
        """
        kinds: dict[tuple[object, ...], list[int]] = {}
        for number, column in enumerate(columns):
            if not 0 <= column.start < column.stop <= column.out_features:
                raise ValueError(f"columns {column.start}:{column.stop} are not among {column.out_features}")
            kinds.setdefault(_kind(column), []).append(number)
        if len({column.in_features for column in columns}) > 1:
            raise ValueError("the Linears of a group must have equal numbers of input features")
        groups = [(numbers, self._uniform([columns[number] for number in numbers])) for numbers in kinds.values()]
        return groups[0][1] if len(groups) == 1 else _MixedGroup(groups)

    def _uniform(self, columns: Sequence[HostColumns]) -> HostGroup:
        if not columns or isinstance(columns[0].weight.storage, Dense):
            return NumbaGroup(self, columns)
        return QuantisedGroup(self, columns)

    def warm_up(self, kinds: Iterable[tuple[WeightFormat, Layout]]) -> None:
        """Compile what these kinds of weight need, 0.3-0.7 s each unless cached, rather than at first use."""
        compiled.kernel_address(jobs.floats)
        for weight_format, layout in kinds:
            for path in _Path:
                self.kernel(path, weight_format, layout)

    def warm_up_quantised(self, kinds: Iterable[QuantisedKind]) -> None:
        """As `warm_up`, for block-quantised weights."""
        for kind in kinds:
            warm_up(kind)

    def scratch(self, nbytes: int) -> npt.NDArray[np.uint8]:
        """At least `nbytes` that any group may use until the next one asks."""
        if self._scratch.nbytes < nbytes:
            self._scratch = np.empty(nbytes, np.uint8)
        return self._scratch

    def kernel(self, path: _Path, weight_format: WeightFormat, layout: Layout) -> int:
        """The address of what the job calls for one Linear."""
        return compiled.kernel_address(_KERNELS[layout, path], weight_format)

    @property
    def sgemm(self) -> int:
        """The address of BLAS's sgemm."""
        return self._sgemm


class NumbaGroup:
    """Linears that share x, as tables of addresses that one launch works through."""

    def __init__(self, backend: NumbaBackend, columns: Sequence[HostColumns]) -> None:
        self._backend = backend
        self._columns = tuple(columns)
        self._matrices = [column.weight.arrays[0].array() for column in columns]
        self._tables: dict[_Path, npt.NDArray[np.int64]] = {}
        self._table = np.zeros(HEADER, np.int64)
        self._call = (0, 0, 0)  # job, table, pieces
        self._x: FloatArray | None = None
        self._outputs: tuple[FloatArray, ...] = ()

    def multiply(self, x: FloatArray, outputs: Sequence[FloatArray]) -> None:
        """See `HostGroup`. Raises ValueError for arrays that do not fit."""
        # Decode brings the same arrays at every step: then the table is right already.
        known = len(outputs) == len(self._outputs) and all(map(operator.is_, outputs, self._outputs))
        if not known or x is not self._x:
            self._bind(x, outputs, known)
        if self._call[2]:
            job, table, pieces = self._call
            self._backend.team.run(job, (table,), self._backend.threads, pieces)

    def _bind(self, x: FloatArray, outputs: Sequence[FloatArray], known: bool) -> None:
        """Check the arrays and write their addresses into the table for so many rows of x."""
        if len(outputs) != len(self._columns):
            raise ValueError(f"{len(self._columns)} Linears need as many outputs, not {len(outputs)}")
        if not self._columns:
            return
        rows = len(x)
        compiled.check_array("x", x, (rows, self._columns[0].in_features))
        if not known or rows != self._table[_ROWS]:
            for output, column in zip(outputs, self._columns, strict=True):
                compiled.check_array("an output", output, (rows, column.out_features))
            path = _path(rows)
            self._table = self._table_for(path)
            for i, (output, column) in enumerate(zip(outputs, self._columns, strict=True)):
                self._table[HEADER + i * ROW + _OUTPUT] = output.ctypes.data + 4 * column.start
            units = int(self._table[_UNITS])
            multiple = _MANY_UNITS if path is _Path.MANY else _UNITS_AT_ONCE
            piece = self._table[_PIECE] = piece_units(units, self._backend.threads, rows, multiple) if rows else 1
            pieces = -(-units // piece) if rows else 0
            self._call = (compiled.kernel_address(jobs.floats), self._table.ctypes.data, pieces)
        self._table[_X], self._table[_ROWS] = x.ctypes.data, rows
        self._x, self._outputs = (x, tuple(outputs)) if rows <= _DECODE_ROWS else (None, ())

    def _table_for(self, path: _Path) -> npt.NDArray[np.int64]:
        """The task of `jobs.floats`, without x and the outputs."""
        if path not in self._tables:
            units = [-(-column.weight.out_features // UNIT) for column in self._columns]
            words = [0, self._columns[0].in_features, 0, len(self._columns), sum(units), 1]
            for column, matrix, count in zip(self._columns, self._matrices, units, strict=True):
                storage = column.weight.storage
                kernel = self._backend.kernel(path, storage.format, storage.layout)
                words += [kernel, matrix.__array_interface__["data"][0], matrix.strides[0] // matrix.itemsize]
                words += [0, column.weight.out_features, 0, column.out_features, count]
            self._tables[path] = np.array(words, np.int64)
        return self._tables[path]


class _MixedGroup:
    """Linears that share x but no launch."""

    def __init__(self, groups: Sequence[tuple[Sequence[int], HostGroup]]) -> None:
        """`groups` with the numbers of their Linears."""
        self._groups = groups
        self._count = sum(len(numbers) for numbers, _ in groups)

    def multiply(self, x: FloatArray, outputs: Sequence[FloatArray]) -> None:
        """See `HostGroup`. Raises ValueError for arrays that do not fit."""
        if len(outputs) != self._count:
            raise ValueError(f"{self._count} Linears need as many outputs, not {len(outputs)}")
        for numbers, group in self._groups:
            group.multiply(x, [outputs[number] for number in numbers])


_KERNELS = {
    (Layout.NK, _Path.ONE): loops.nk_one,
    (Layout.NK, _Path.FEW): loops.nk_few,
    (Layout.NK, _Path.MANY): tiles.nk_many,
    (Layout.KN, _Path.ONE): loops.kn_one,
    (Layout.KN, _Path.FEW): loops.kn_few,
    (Layout.KN, _Path.MANY): tiles.kn_many,
}


def _path(rows: int) -> _Path:
    if rows > _FEW_ROWS:
        return _Path.MANY
    return _Path.FEW if rows > 1 else _Path.ONE


# Where the words are that change from call to call.
_X, _ROWS, _UNITS, _PIECE, _OUTPUT = 0, 2, 4, 5, 5


def _kind(column: HostColumns) -> tuple[object, ...]:
    """Name what Linears must have in common to be multiplied in one launch."""
    storage = column.weight.storage
    return () if isinstance(storage, Dense) else (storage.bits, storage.block, column.activations)


def _sgemm_address() -> int:
    """SciPy's sgemm as machine code: a capsule whose name is the C signature holds the address."""
    capsule = cython_blas.__pyx_capi__["sgemm"]
    name, pointer = ctypes.pythonapi.PyCapsule_GetName, ctypes.pythonapi.PyCapsule_GetPointer
    name.restype, name.argtypes = ctypes.c_char_p, (ctypes.py_object,)
    pointer.restype, pointer.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)
    return int(pointer(capsule, name(capsule)))
