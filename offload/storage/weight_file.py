"""Files that hold weights: read past their mapping or mapped, one mapping for each file and no descriptor kept for any.

Python's own mmap (and so numpy's memmap) holds a descriptor for as long as the mapping lives; a model has thousands of
weights, and some exports have a file for each.
"""

import ctypes
import mmap
import os
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from offload.errors import OffloadError
from offload.spec.units import counted

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_FAILED = ctypes.c_void_p(-1).value

Bytes = npt.NDArray[np.uint8]


class Identity(NamedTuple):
    """The marks by which a file is known that was replaced or written to."""

    device: int
    number: int
    nbytes: int
    written_ns: int

    @classmethod
    def of(cls, stat: os.stat_result) -> "Identity":
        """Those of a file."""
        return cls(stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns)

    def is_of_same_file(self, other: "Identity") -> bool:
        """Tell whether both are of one file, be it that it was written to in between."""
        return self[:2] == other[:2]


class WeightFile:
    """A file as it was when it was opened; what is read of it later has to be of the same file, as it was."""

    def __init__(self, path: Path, identity: Identity) -> None:
        self.path = path
        self.identity = identity
        self._mapped: Bytes | None = None

    @classmethod
    def at(cls, path: Path) -> "WeightFile":
        """The file at a path; one object for all who ask, as long as it is the same file. Raises OSError."""
        identity = Identity.of(path.stat())
        return _files.get((path, identity)) or _files.setdefault((path, identity), cls(path, identity))

    def check_same(self, descriptor: int) -> None:
        """Raise OffloadError where an open file is another one by now, or was written to."""
        now = Identity.of(os.fstat(descriptor))
        if not now.is_of_same_file(self.identity):
            raise OffloadError(f"{self.path}: was replaced by another file")
        if now != self.identity:
            before = self.identity.nbytes
            shorter = f"has become shorter, {now.nbytes:,} of {counted(before, 'byte')}"
            raise OffloadError(f"{self.path}: {shorter if now.nbytes < before else 'was written to'}")

    def read(self, offset: int, target: Bytes) -> None:
        """Fill `target` with the bytes from `offset` on, past the mapping: mapped pages count as this process's.

        Raises OffloadError.
        """
        try:
            with open(self.path, "rb", buffering=0) as file:
                self.check_same(file.fileno())
                done = 0
                while done < target.nbytes:
                    count = os.preadv(file.fileno(), [target[done:].data], offset + done)
                    if count == 0:
                        raise OffloadError(f"{self.path}: has become shorter while it was read")
                    done += count
        except OSError as error:
            raise OffloadError(f"{self.path}: cannot be read: {error.strerror}") from None

    @property
    def mapped(self) -> Bytes:
        """All bytes, read-only. They stay mapped as long as this, or an array over them, lives. Raises OffloadError."""
        if self._mapped is None:
            try:
                self._mapped = np.asarray(_Mapping(self))
            except OSError as error:
                raise OffloadError(f"{self.path}: cannot be mapped: {error.strerror}") from None
        return self._mapped

    def drop_pages(self, offset: int, nbytes: int) -> None:
        """Release pages that were touched of the mapping; they come back, mostly from the page cache, when read."""
        if self._mapped is not None and nbytes:
            first = self._mapped.ctypes.data + offset
            start = first // mmap.PAGESIZE * mmap.PAGESIZE
            _libc.madvise(start, first + nbytes - start, mmap.MADV_DONTNEED)


_files: "weakref.WeakValueDictionary[tuple[Path, Identity], WeightFile]" = weakref.WeakValueDictionary()


class _Mapping:
    def __init__(self, file: WeightFile) -> None:
        """Map all of a file. Raises OSError, and OffloadError where it is no longer as it was."""
        nbytes = file.identity.nbytes
        descriptor = os.open(file.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            file.check_same(descriptor)
            address = _libc.mmap(None, nbytes, mmap.PROT_READ, mmap.MAP_SHARED, descriptor, 0)
            if address == _FAILED:
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        finally:
            os.close(descriptor)
        weakref.finalize(self, _libc.munmap, address, nbytes).atexit = False
        self.__array_interface__: dict[str, Any] = {
            "version": 3,
            "shape": (nbytes,),
            "typestr": "|u1",
            "data": (address, True),
        }


@dataclass(frozen=True)
class FileRange:
    """Bytes `offset <= byte < offset + nbytes` of a file, which has them."""

    file: WeightFile
    offset: int
    nbytes: int

    def __post_init__(self) -> None:
        """Raises OffloadError for bytes that the file does not have."""
        has = self.file.identity.nbytes
        if not 0 <= self.offset <= self.offset + self.nbytes <= has:
            stop = self.offset + self.nbytes
            raise OffloadError(f"{self.path}: bytes {self.offset:,} to {stop:,} are not in {counted(has, 'byte')}")

    @property
    def path(self) -> Path:
        """The path of the file, links resolved."""
        return self.file.path
