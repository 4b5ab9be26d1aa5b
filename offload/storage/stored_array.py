"""An array where it lies: in memory, or in a file that nobody has read yet."""

from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from offload.spec.arrays import HostArray
from offload.storage.weight_file import Bytes, FileRange, WeightFile

_BAND_BYTES = 1 << 20  # what is read at once of rows that lie apart


@dataclass(frozen=True, eq=False)
class StoredArray:
    """A row-major array at byte `offset` of a file, or of memory; at any offset, aligned or not.

    From one row to the next are `row_stride` bytes: rows are contiguous, and may lie apart.
    """

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    source: WeightFile | Bytes
    offset: int
    row_stride: int

    @classmethod
    def at(cls, where: FileRange | HostArray, dtype: npt.DTypeLike, shape: tuple[int, ...]) -> "StoredArray":
        """An array over contiguous bytes. Raises ValueError where they are not contiguous, or more or fewer."""
        dtype = np.dtype(dtype)
        row_bytes = prod(shape[1:]) * dtype.itemsize
        if where.nbytes != prod(shape) * dtype.itemsize:
            raise ValueError(f"{where.nbytes:,} bytes are no array {list(shape)} of {dtype}")
        if isinstance(where, FileRange):
            return cls(dtype, shape, where.file, where.offset, row_bytes)
        if not where.flags.c_contiguous:
            raise ValueError(f"an array must be contiguous, not strided by {list(where.strides)} bytes")
        return cls(dtype, shape, where.reshape(-1).view(np.uint8), 0, row_bytes)

    @classmethod
    def of(cls, array: HostArray) -> "StoredArray":
        """An array in memory. Raises ValueError for one that is not contiguous."""
        return cls.at(array, array.dtype, array.shape)

    @property
    def in_file(self) -> bool:
        """Tell whether it lies in a file."""
        return isinstance(self.source, WeightFile)

    @property
    def is_contiguous(self) -> bool:
        """Tell whether no bytes lie between its rows."""
        return self.row_stride == self._row_bytes or self.shape[0] == 1

    @property
    def nbytes(self) -> int:
        """Bytes of its elements."""
        return prod(self.shape) * self.dtype.itemsize

    def rows(self, start: int, stop: int) -> "StoredArray":
        """Rows `start <= row < stop`, which are there."""
        assert 0 <= start < stop <= self.shape[0], (start, stop, self.shape)
        return replace(self, shape=(stop - start, *self.shape[1:]), offset=self.offset + start * self.row_stride)

    def columns(self, start: int, stop: int) -> "StoredArray":
        """Columns `start <= column < stop` of a matrix, which are there."""
        rows, columns = self.shape
        assert 0 <= start < stop <= columns, (start, stop, self.shape)
        return replace(self, shape=(rows, stop - start), offset=self.offset + start * self.dtype.itemsize)

    def reshape(self, *shape: int) -> "StoredArray":
        """The same contiguous elements in another shape."""
        assert self.is_contiguous, (self.shape, self.row_stride)
        assert prod(shape) == prod(self.shape), (shape, self.shape)
        return replace(self, shape=shape, row_stride=prod(shape[1:]) * self.dtype.itemsize)

    def array(self) -> HostArray:
        """The elements in place: mapped, read-only, where they lie in a file. Raises OffloadError."""
        memory = self.source.mapped if isinstance(self.source, WeightFile) else self.source
        inner = [prod(self.shape[axis:]) * self.dtype.itemsize for axis in range(2, len(self.shape) + 1)]
        strides = (self.row_stride, *inner)[: len(self.shape)]
        return np.ndarray(self.shape, self.dtype, memory, self.offset, strides)

    def file_range(self) -> FileRange:
        """The bytes from its first to its last element, which lies in a file."""
        assert isinstance(self.source, WeightFile)
        return FileRange(self.source, self.offset, (self.shape[0] - 1) * self.row_stride + self._row_bytes)

    def over(self, copy: Bytes) -> "StoredArray":
        """The same array in a copy of the bytes of `file_range`."""
        return replace(self, source=copy, offset=0)

    def read_into(self, out: HostArray) -> None:
        """Write the elements into `out`, of the same shape and dtype; files are read, not mapped.

        Raises OffloadError for a file that has changed or cannot be read.
        """
        if not isinstance(self.source, WeightFile):
            out[...] = self.array()
            return
        if self.is_contiguous and out.flags.c_contiguous:
            self.source.read(self.offset, out.reshape(-1).view(np.uint8))
            return
        band = max(1, _BAND_BYTES // self.row_stride)
        for start in range(0, len(out), band):
            part = self.rows(start, min(start + band, len(out)))
            where = part.file_range()
            copy = np.empty(where.nbytes, np.uint8)
            self.source.read(where.offset, copy)
            out[start : start + band] = part.over(copy).array()

    @property
    def _row_bytes(self) -> int:
        return prod(self.shape[1:]) * self.dtype.itemsize
