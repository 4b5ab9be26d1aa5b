"""Files of a repository on their way into the cache, in the layout that huggingface_hub defines.

`snapshots/<commit>/<name>` are links to `blobs/<checksum>`, so programs share their downloads. What has arrived of a
file is kept in a part beside them, from one process to the next. A part becomes a blob when its bytes have the checksum
that the hub gave.
"""

import hashlib
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO
from urllib.parse import quote

from hybrid.source.hub_errors import NoHub, Pause, Unreachable, WrongBytes, is_busy, with_retries
from hybrid.source.hub_files import RepositoryFile
from hybrid.source.hub_http import LEAST_BYTES, Answer, HubClient
from hybrid.source.part_file import Checksum, Hashes, hash_from_start, open_part
from offload.spec.units import counted

_MOST_AT_ONCE = 32 << 30  # storage refuses to send more than 50 GB in one answer
_ETAG = re.compile(r'(?:W/)?"?([0-9a-fA-F]{40}|[0-9a-fA-F]{64})"?')


class Download:
    """One file. `cache` is the repository's folder there, `path` the file's below the endpoint."""

    def __init__(
        self,
        client: HubClient,
        cache: Path,
        repository: str,
        commit: str,
        file: RepositoryFile,
        on_bytes: Callable[[int], None],
    ) -> None:
        self.file = file
        self._client = client
        self._path = f"/{repository}/resolve/{commit}/{quote(file.name)}"
        self._link = cache / "snapshots" / commit / file.name
        self._blobs = cache / "blobs"
        self._on_bytes = on_bytes
        # A name of digits only, whatever the hub says; and not the one that huggingface_hub uses, under another lock.
        name = file.checksum.hex if file.checksum else hashlib.sha256(f"{commit}/{file.name}".encode()).hexdigest()
        self._part = self._blobs / f"{name}.hybrid.incomplete"
        self._seen_bytes = self._checked_bytes = self._present_bytes()

    @property
    def bytes_to_fetch(self) -> int:
        """Count the missing bytes."""
        return self.file.nbytes - self._seen_bytes

    def run(self, pause: Pause) -> None:
        """Fetch what is missing, put it in its place. Raises HubError or OSError."""
        with_retries(self._attempt, _is_passing, pause, self._has_advanced)

    def _has_advanced(self) -> bool:
        """Tell whether enough bytes came since the last call that the connection is worth another attempt."""
        before, self._checked_bytes = self._checked_bytes, self._seen_bytes
        return self._seen_bytes - before >= LEAST_BYTES

    def _present_bytes(self) -> int:
        if self._blob() is not None:
            return self.file.nbytes
        return min(self._part.stat().st_size, self.file.nbytes) if self._part.is_file() else 0

    def _blob(self) -> Path | None:
        """The file under another name, or of another commit, if it is there."""
        if self.file.checksum is None:
            return None
        blob = self._blobs / self.file.checksum.hex
        return blob if blob.is_file() and blob.stat().st_size == self.file.nbytes else None

    def _attempt(self) -> None:
        self._blobs.mkdir(parents=True, exist_ok=True)
        with open_part(self._part) as part:
            if self._link.is_file():  # another process was faster
                self._part.unlink()
                return
            blob = self._blob()
            try:
                self._put(blob or self._fetch(part))
            finally:
                if blob is not None or os.fstat(part.fileno()).st_size == 0:
                    self._part.unlink(missing_ok=True)

    def _fetch(self, part: BinaryIO) -> Path:
        """Bring the part to its end and make it a blob."""
        checksum, size = self.file.checksum, self.file.nbytes
        if checksum is None or os.fstat(part.fileno()).st_size > size:
            part.truncate(0)
        hashes = Hashes(size, is_stored=checksum is not None and checksum.kind == "sha256")
        hash_from_start(part, hashes)
        begun_at = part.tell()
        while checksum is None or part.tell() < size:
            start = part.tell()
            end = min(size, start + _MOST_AT_ONCE)
            with self._client.get(self._path, None if (start, end) == (0, size) else (start, end)) as answer:
                checksum = checksum or _checksum_of(answer)
                if answer.status == 206:
                    self._check_range(answer, start, end)
                else:  # the whole file, whatever was asked for
                    part.truncate(0)
                    start, end, hashes = 0, size, Hashes(size, checksum.kind == "sha256")
                if answer.nbytes not in (None, end - start):
                    raise NoHub(f"it sends {counted(answer.nbytes, 'byte')} where {end - start:,} are listed")
                self._write(answer, part, hashes, end - start)
        if not hashes.agree(checksum):
            self._part.unlink()
            raise WrongBytes(continued=begun_at > 0)
        blob = self._blobs / hashes.blob_name
        self._part.replace(blob)
        return blob

    def _check_range(self, answer: Answer, start: int, end: int) -> None:
        if answer.content_range != (start, end - 1, self.file.nbytes):
            raise NoHub(f"it sends other bytes than {start} to {end - 1} of {self.file.nbytes}")

    def _write(self, answer: Answer, part: BinaryIO, hashes: Hashes, nbytes: int) -> None:
        end = part.tell() + nbytes
        for piece in answer.pieces(nbytes):
            rest = memoryview(piece)
            while rest:  # a disk that is getting full may take a part of it
                rest = rest[part.write(rest) :]
            hashes.feed(piece)
            self._reached(part.tell())
        if part.tell() < end:
            raise Unreachable("the connection broke")

    def _put(self, blob: Path) -> None:
        self._link.parent.mkdir(parents=True, exist_ok=True)
        self._link.unlink(missing_ok=True)  # it led to a file that was deleted
        try:
            self._link.symlink_to(os.path.relpath(blob, self._link.parent))
        except FileExistsError:
            pass
        except OSError:  # a file system without links
            blob.replace(self._link)

    def _reached(self, position: int) -> None:
        """Count bytes once, also when some are fetched again."""
        if position > self._seen_bytes:
            self._on_bytes(position - self._seen_bytes)
            self._seen_bytes = position


def _checksum_of(answer: Answer) -> Checksum:
    """The checksum in an answer, for files whose listing has none. Raises NoHub without one."""
    found = _ETAG.fullmatch(answer.etag)
    if found is None:
        raise NoHub("it gives no checksum")
    digest = found[1].lower()
    return Checksum("sha256" if len(digest) == 64 else "sha1", digest)


def _is_passing(error: BaseException) -> bool:
    """Tell whether another attempt may go better."""
    return isinstance(error, Unreachable) or is_busy(error) or (isinstance(error, WrongBytes) and error.continued)
