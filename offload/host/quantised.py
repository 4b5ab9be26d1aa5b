"""Linears with weights block-quantised to int8 or int4, multiplied on the CPU."""

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from offload.host.base import HostColumns
from offload.host.kernels import compiled, jobs, quant_few, quant_one, quant_x
from offload.host.kernels.jobs import BLOCK_HEADER, BLOCK_ROW, UNIT
from offload.host.team import PIECES, Team, piece_units
from offload.spec.arrays import FloatArray
from offload.spec.linear import Activations, BlockFormat, WeightFormat

_DECODE_ROWS = 8  # up to here a group remembers its arrays between calls; more rows are too big to keep alive
_ALIGNMENT = 64
_MULTIPLE = 4  # units of columns that a piece has at least
_ONE_THREAD = 1 << 15  # elements of x that one thread makes ready in less time than several need to wake up


@dataclass(frozen=True)
class QuantisedKind:
    """The properties that a kernel is compiled for."""

    bits: int
    block: int
    scales: WeightFormat  # fp32 or fp16
    activations: Activations

    @classmethod
    def of(cls, blocks: BlockFormat, activations: Activations) -> "QuantisedKind":
        """The kind of weights that are stored so."""
        return cls(blocks.bits, blocks.block, blocks.scales, activations)

    def kernel(self, rows: int) -> int:
        """The address of the kernel for so many rows of x."""
        return self._address(_KERNELS[self.activations][0 if rows == 1 else 1])

    @property
    def ready(self) -> int:
        """The address of what makes x ready."""
        return self._address(_READY[self.activations])

    def _address(self, function: Callable[..., None]) -> int:
        return compiled.quantised_kernel_address(function, self.bits, self.block, self.scales)


class Backend(Protocol):
    """The part of a backend that a group needs."""

    threads: int
    team: Team

    def scratch(self, nbytes: int) -> npt.NDArray[np.uint8]:
        """Memory that any group may use until the next one asks."""


def warm_up(kind: QuantisedKind) -> None:
    """Compile everything for one kind, about a second unless it is cached, rather than at first use."""
    for job in (jobs.blocks, jobs.ready_x):
        compiled.kernel_address(job)
    for rows in (1, 2):
        kind.kernel(rows)
    assert kind.ready


class QuantisedGroup:
    """Linears that read the same x in the same blocks, as a table of addresses that one launch works through.

    x is made ready once for all of them: a single row by every thread for itself, several by a launch of their own.
    """

    def __init__(self, backend: Backend, columns: Sequence[HostColumns]) -> None:
        """Raises ValueError for weights of different K or blocks."""
        weights = [column.weight for column in columns]
        if len({(weight.in_features, weight.blocks.bits, weight.blocks.block) for weight in weights}) != 1:
            raise ValueError("quantised Linears of a group must have equal input features, bits and blocks")
        self._backend = backend
        self._columns = tuple(columns)
        self._arrays = [[array.array() for array in weight.arrays] for weight in weights]
        self._in_features, self._blocks = weights[0].in_features, weights[0].blocks
        self._kinds = [QuantisedKind.of(column.weight.blocks, column.activations) for column in columns]
        self._itemsize = 1 if columns[0].activations is Activations.INT8 else 4
        self._x: FloatArray | None = None
        self._outputs: tuple[FloatArray, ...] = ()
        self._memory = np.empty(0, np.uint8)
        self._table = np.zeros(BLOCK_HEADER, np.int64)
        self._address = 0
        self._calls: list[tuple[int, int]] = []  # job, pieces

    def multiply(self, x: FloatArray, outputs: Sequence[FloatArray]) -> None:
        """See `HostGroup`. Raises ValueError for arrays that do not fit."""
        known = len(outputs) == len(self._outputs) and all(map(operator.is_, outputs, self._outputs))
        if not known or x is not self._x:
            self._bind(x, outputs)
        address = (self._address,)
        for job, pieces in self._calls:
            self._backend.team.run(job, address, self._backend.threads, pieces)

    def _bind(self, x: FloatArray, outputs: Sequence[FloatArray]) -> None:
        """Check the arrays and write everything into the table."""
        if len(outputs) != len(self._columns):
            raise ValueError(f"{len(self._columns)} Linears need as many outputs, not {len(outputs)}")
        rows = len(x)
        compiled.check_array("x", x, (rows, self._in_features))
        for output, column in zip(outputs, self._columns, strict=True):
            compiled.check_array("an output", output, (rows, column.out_features))
        self._x, self._outputs = (x, tuple(outputs)) if rows <= _DECODE_ROWS else (None, ())
        if not rows:
            self._calls = []
            return
        units = [-(-column.weight.out_features // UNIT) for column in self._columns]
        blocks = self._blocks.blocks(self._in_features)
        table = [x.ctypes.data, self._in_features, rows, len(units), sum(units), blocks]
        threads = self._backend.threads
        piece = piece_units(sum(units), threads, rows, _MULTIPLE)
        table += [*self._places_of_x(rows), self._kinds[0].ready, piece]
        for kind, arrays, column, count, output in zip(
            self._kinds, self._arrays, self._columns, units, outputs, strict=True
        ):
            codes, scales, zeros = (*map(_address, arrays), 0)[:3]
            table += [kind.kernel(rows), codes, scales, zeros]
            y = output.ctypes.data + 4 * column.start
            table += [0, column.weight.out_features, y, column.out_features, count, 0]
        self._table = np.array(table, np.int64)
        assert len(table) == BLOCK_HEADER + BLOCK_ROW * len(units)
        self._address = int(self._table.ctypes.data)
        self._calls = [(compiled.kernel_address(jobs.blocks), -(-sum(units) // piece))]
        if rows > 1:
            parts = 1 if rows * self._in_features <= _ONE_THREAD else min(rows, PIECES * threads)
            self._calls.insert(0, (compiled.kernel_address(jobs.ready_x), parts))

    def _places_of_x(self, rows: int) -> list[int]:
        """Place x made ready in the scratch: values, scales, sums, and the bytes from one thread's copy to the next."""
        blocks = self._blocks.blocks(self._in_features)
        values = _aligned(rows * blocks * self._blocks.block * self._itemsize)
        factors = _aligned(4 * rows * blocks)
        nbytes = values + 2 * factors
        copies = self._backend.threads if rows == 1 else 1
        wanted = copies * nbytes + _ALIGNMENT
        # Between calls of several rows, memory that is too big to keep alive is shared with other groups.
        self._memory = np.empty(wanted, np.uint8) if rows <= _DECODE_ROWS else self._backend.scratch(wanted)
        start = _aligned(self._memory.ctypes.data)
        return [start, start + values, start + values + factors, nbytes if rows == 1 else 0]


def _aligned(nbytes: int) -> int:
    return -(-nbytes // _ALIGNMENT) * _ALIGNMENT


def _address(array: npt.NDArray[np.generic]) -> int:
    return int(array.__array_interface__["data"][0])


_KERNELS = {
    Activations.INT8: (quant_one.int8_one, quant_few.int8_few),
    Activations.FLOAT: (quant_one.float_one, quant_few.float_few),
}
_READY = {Activations.INT8: quant_x.round_x, Activations.FLOAT: quant_x.copy_x}
