"""Files in the address space: one mapping for each file, and no descriptor kept for any.

Python's own mmap (and so numpy's memmap) holds a descriptor for as long as the mapping lives; a model has thousands of
weights, and some exports have a file for each.
"""

import ctypes
import mmap
import os
import weakref
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from offload.errors import OffloadError
from offload.spec.arrays import HostArray
from offload.spec.units import counted

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_FAILED = ctypes.c_void_p(-1).value


Identity = tuple[int, int, int, int]


def _identity(stat: os.stat_result) -> Identity:
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns


def check_same(path: str, identity: Identity, descriptor: int) -> None:
    """Raise OffloadError where the open file of a path is not the one with this identity, or was written to since."""
    now = _identity(os.fstat(descriptor))
    if now[:2] != identity[:2]:
        raise OffloadError(f"{path}: was replaced by another file")
    if now != identity:
        shorter = f"has become shorter, {now[2]:,} of {counted(identity[2], 'byte')}"
        raise OffloadError(f"{path}: {shorter if now[2] < identity[2] else 'was written to'}")


class MappedFile:
    """All bytes of a file, read-only. They stay mapped as long as this, or an array over them, lives."""

    def __init__(self, path: str | Path) -> None:
        """Map the file. Raises OSError."""
        self.path = str(path)
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            self.identity = _identity(os.fstat(descriptor))
            self.nbytes = os.fstat(descriptor).st_size
            address = _libc.mmap(None, self.nbytes, mmap.PROT_READ, mmap.MAP_SHARED, descriptor, 0)
            if address == _FAILED:
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        finally:
            os.close(descriptor)
        self.address = int(address)
        weakref.finalize(self, _libc.munmap, self.address, self.nbytes).atexit = False

    def check_same(self, descriptor: int) -> None:
        """Raise OffloadError where an open file is another one by now, or was written to."""
        check_same(self.path, self.identity, descriptor)

    @property
    def __array_interface__(self) -> dict[str, Any]:
        return {"version": 3, "shape": (self.nbytes,), "typestr": "|u1", "data": (self.address, True)}


_mapped: "weakref.WeakValueDictionary[tuple[int, ...], MappedFile]" = weakref.WeakValueDictionary()


def map_array(path: str | Path, dtype: npt.DTypeLike, offset_bytes: int, shape: tuple[int, ...]) -> HostArray:
    """An array over a part of a file, at any offset, aligned or not; it has at least one element.

    Arrays of one file share its mapping. Raises OffloadError for a file that cannot be mapped or ends before the array.
    """
    dtype = np.dtype(dtype)
    stop = offset_bytes + prod(shape) * dtype.itemsize
    try:
        stat = os.stat(path)
        if stat.st_size < stop:
            raise OffloadError(f"{path}: has become shorter, {counted(stat.st_size, 'byte')} where {stop:,} are needed")
        identity = _identity(stat)
        file = _mapped.get(identity) or _mapped.setdefault(identity, MappedFile(path))
    except OSError as error:
        raise OffloadError(f"{path}: cannot be mapped: {error.strerror}") from None
    return np.asarray(file)[offset_bytes:stop].view(dtype).reshape(shape)


def file_of(array: HostArray) -> MappedFile | None:
    """The file that an array lies in, or a view of one; None when it lies in no file."""
    owner: Any = array
    while isinstance(owner, np.ndarray):
        owner = owner.base
    return owner if isinstance(owner, MappedFile) else None


def offset_in_file(array: HostArray) -> int:
    """The byte of its file at which an array begins that lies in one."""
    file = file_of(array)
    assert file is not None
    return int(array.ctypes.data) - file.address


def drop_pages(array: HostArray) -> None:
    """Release the pages of an array that lies in a file; they come back, mostly from the page cache, when read."""
    if file_of(array) is None or array.nbytes == 0:
        return
    start = array.ctypes.data // mmap.PAGESIZE * mmap.PAGESIZE
    _libc.madvise(start, array.ctypes.data + array.nbytes - start, mmap.MADV_DONTNEED)
