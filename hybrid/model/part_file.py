"""A file that is still being downloaded."""

import fcntl
import hashlib
import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any


class PartFile(io.BufferedWriter):
    """A file that is appended to and tells how long it is."""

    def __init__(self, path: Path, on_length: Callable[[int], None]) -> None:
        super().__init__(io.FileIO(path, "a"))
        self._on_length = on_length

    def write(self, data: Any) -> int:
        written = super().write(data)
        self._on_length(self.tell())
        return written

    def empty(self) -> int:
        """Begin again, at position 0."""
        self.seek(0)
        return self.truncate()


@contextmanager
def open_locked(path: Path, on_length: Callable[[int], None]) -> Iterator[PartFile]:
    """Append to a file that one process at a time writes."""
    with PartFile(path, on_length) as file:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(file.fileno(), fcntl.LOCK_EX)
        file.seek(0, io.SEEK_END)  # another process may have written it meanwhile
        yield file


def file_sha256(path: Path) -> str:
    """The checksum of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
