"""A file that is still being downloaded: written by one process at a time, hashed while it is written."""

import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

_PIECE_BYTES = 1 << 20


@dataclass(frozen=True)
class Checksum:
    """A hub's checksum of bytes: SHA-256, Git's hash of a file ("git"), or either that or SHA-1 ("sha1")."""

    kind: str
    hex: str


class Hashes:
    """The hashes of a file of known size, fed as it comes; for one in large-file storage (`is_stored`) only SHA-256."""

    def __init__(self, nbytes: int, is_stored: bool) -> None:
        self._sha256 = hashlib.sha256()
        self._git = None if is_stored else hashlib.sha1(b"blob %d\0" % nbytes, usedforsecurity=False)
        self._sha1 = None if is_stored else hashlib.sha1(usedforsecurity=False)

    def feed(self, data: bytes) -> None:
        """Add what comes next."""
        self._sha256.update(data)
        if self._git is not None and self._sha1 is not None:
            self._git.update(data)
            self._sha1.update(data)

    def agree(self, checksum: Checksum) -> bool:
        """Tell whether the bytes are those that the checksum is of."""
        kinds = {"sha256": (self._sha256,), "git": (self._git,), "sha1": (self._git, self._sha1)}
        return checksum.hex in [each.hexdigest() for each in kinds[checksum.kind] if each is not None]

    @property
    def blob_name(self) -> str:
        """Give the cache's name of the file: its SHA-256 in large-file storage, else Git's name."""
        return (self._git or self._sha256).hexdigest()


@contextmanager
def open_part(path: Path) -> Iterator[BinaryIO]:
    """Go on with a file at its end, or begin it; wait for another process that writes it."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        with os.fdopen(descriptor, "a+b", buffering=0) as file:
            with suppress(OSError):  # a file system without locks
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            if _is_at(path, descriptor):
                yield file  # type: ignore[misc]
                return
        # Another process has put the file in its place, or thrown it away, while we waited.


def hash_from_start(file: BinaryIO, hashes: Hashes) -> None:
    """Feed all that is in a part."""
    file.seek(0)
    while piece := file.read(_PIECE_BYTES):
        hashes.feed(piece)


def _is_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(path, follow_symlinks=False), os.fstat(descriptor))
    except FileNotFoundError:
        return False
