"""The read-ahead ring: weights on their way from their files through one buffer in RAM.

Pieces are used in one fixed order, step after step, and weights do not depend on activations. So threads read
ahead, round and round across steps, as far as the buffer reaches; the disk and the processor work at once.

A piece is some ranges of files that are read, used and released together. Every piece has one place in the buffer for
good. Pieces lie there one after another, and again from the front when the end is reached; a piece may be read as soon
as those that lie where it will lie have been released.
"""

import contextlib
import errno
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path

import numpy as np

from offload.errors import OffloadError
from offload.plan.ram_tiers import PAGE_BYTES
from offload.storage.weight_file import Bytes, FileRange, WeightFile
from offload.weights.reads import READERS

_OPEN_FILES = 8  # that a reader keeps: some exports have a file for every weight


@dataclass(frozen=True)
class Seat:
    """The place of a piece in the buffer, and how many pieces back the last one is that lies there too."""

    offset_bytes: int
    behind: int


def seats(span_bytes: Sequence[int], capacity_bytes: int) -> tuple[Seat, ...]:
    """Seats for pieces of these sizes that are used round and round. Raises ValueError if one does not fit."""
    offsets, position = [], 0
    for span in span_bytes:
        if span > capacity_bytes:
            raise ValueError(f"a piece of {span} bytes does not fit a buffer of {capacity_bytes} bytes")
        position = 0 if position + span > capacity_bytes else position
        offsets.append(position)
        position += span
    count = len(offsets)

    def overlap(one: int, other: int) -> bool:
        return offsets[one] < offsets[other] + span_bytes[other] and offsets[other] < offsets[one] + span_bytes[one]

    return tuple(
        Seat(offsets[piece], next(back for back in range(1, count + 1) if overlap(piece, (piece - back) % count)))
        for piece in range(count)
    )


class DiskRing:
    """A buffer that threads fill with `pieces` of files, in order and round and round.

    Every piece goes: `acquire`, read `arrays(piece)`, `release`; from one thread.
    """

    def __init__(self, pieces: Sequence[Sequence[FileRange]], capacity_bytes: int) -> None:
        """Allocate the buffer; `start` begins to read. Raises ValueError for a piece that does not fit."""
        self._pieces = tuple(pieces)
        self._seats = seats([sum(map(span_bytes, piece)) for piece in self._pieces], capacity_bytes)
        memory = np.empty(capacity_bytes + PAGE_BYTES, np.uint8)
        first = -memory.ctypes.data % PAGE_BYTES
        self._memory = memory[first : first + capacity_bytes]
        # These count pieces since the start: piece number n is pieces[n % len(pieces)].
        self._taken = 0
        self._released = 0
        self._arrived = [-1] * len(self._pieces)  # the last number of each piece that is there
        self._changed = threading.Condition()
        self._closed = False
        self._error = ""
        readers = min(READERS, len(self._pieces))
        self._threads = [threading.Thread(target=self._read, name="read-ahead", daemon=True) for _ in range(readers)]

    def start(self) -> None:
        """Begin to read."""
        for thread in self._threads:
            thread.start()

    def arrays(self, piece: int) -> list[Bytes]:
        """Give the bytes of each range of a piece, valid between `acquire` and `release`; always the same memory."""
        parts = self._pieces[piece]
        return [
            span[_lead_bytes(part) : _lead_bytes(part) + part.nbytes]
            for part, span in zip(parts, self._spans(piece), strict=True)
        ]

    def acquire(self, piece: int) -> None:
        """Wait until piece number `piece` is there. Pieces that come before it are released unused.

        Raises OffloadError when it cannot be read, now and at every later call.
        """
        while self._released % len(self._pieces) != piece:
            self._wait_for(self._released)
            self.release()
        self._wait_for(self._released)

    def release(self) -> None:
        """Release the acquired piece, so that its memory is filled anew."""
        with self._changed:
            self._released += 1
            self._changed.notify_all()

    def close(self) -> None:
        """Stop reading, when the reads under way are done. Safe to call twice."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            if thread.ident is not None:
                thread.join()

    def _wait_for(self, number: int) -> None:
        piece = number % len(self._pieces)
        with self._changed:
            self._changed.wait_for(lambda: self._arrived[piece] == number or self._error or self._closed)
            if self._arrived[piece] != number:
                raise OffloadError(self._error or "the weights are no longer read: the model has been closed")

    def _spans(self, piece: int) -> list[Bytes]:
        """The whole pages that each range of a piece takes of the buffer."""
        start = self._seats[piece].offset_bytes
        ends = list(accumulate(map(span_bytes, self._pieces[piece]), initial=start))
        return [self._memory[first:last] for first, last in pairwise(ends)]

    def _read(self) -> None:
        with _Files() as files:
            while (number := self._take()) is not None:
                piece = number % len(self._pieces)
                for part, span in zip(self._pieces[piece], self._spans(piece), strict=True):
                    try:
                        files.read(part, span)
                    except (OffloadError, OSError) as error:
                        self._fail(_message(part, error))
                        return
                with self._changed:
                    self._arrived[piece] = number
                    self._changed.notify_all()

    def _take(self) -> int | None:
        """The number of the next piece to read, when there is room for it; None when there is nothing to do."""
        with self._changed:
            number = self._taken
            self._taken += 1
            # The memory may be overwritten only when every piece that lay there has been released.
            needed = number - self._seats[number % len(self._pieces)].behind + 1
            self._changed.wait_for(lambda: self._released >= needed or self._error or self._closed)
            return None if self._error or self._closed else number

    def _fail(self, message: str) -> None:
        with self._changed:
            self._error = self._error or message
            self._changed.notify_all()


class _Files:
    """The open files of one thread: past the page cache where the file system can, else through it and out again."""

    def __init__(self) -> None:
        self._open: dict[WeightFile, tuple[int, bool]] = {}  # descriptor, and whether it is direct

    def __enter__(self) -> "_Files":
        return self

    def __exit__(self, *_: object) -> None:
        for descriptor, _direct in self._open.values():
            os.close(descriptor)

    def read(self, part: FileRange, target: Bytes) -> None:
        """Read the pages around a range. Raises OffloadError for a file that ends before it, and OSError."""
        if part.file not in self._open:
            if len(self._open) == _OPEN_FILES:
                oldest = next(iter(self._open))
                os.close(self._open.pop(oldest)[0])
            self._open[part.file] = _open(part.path)
            part.file.check_same(self._open[part.file][0])
        descriptor, direct = self._open[part.file]
        try:
            _fill(descriptor, direct, part, target)
        except OSError as error:
            if not direct or error.errno != errno.EINVAL:
                raise
            os.close(descriptor)  # a file system that opens files for direct reads and then refuses those
            self._open[part.file] = descriptor, direct = os.open(part.path, os.O_RDONLY | os.O_CLOEXEC), False
            _fill(descriptor, direct, part, target)
        if not direct and hasattr(os, "posix_fadvise"):
            start = part.offset - _lead_bytes(part)
            os.posix_fadvise(descriptor, start, span_bytes(part), os.POSIX_FADV_DONTNEED)


def _fill(descriptor: int, direct: bool, part: FileRange, target: Bytes) -> None:
    done, wanted = 0, _lead_bytes(part) + part.nbytes
    while done < wanted:
        count = os.preadv(descriptor, [target[done:].data], part.offset - _lead_bytes(part) + done)
        done += count
        # The end of the file cuts a direct read off, and one that goes on behind a cut would not be aligned.
        if done < wanted and (count == 0 or (direct and count % PAGE_BYTES)):
            raise OffloadError(f"{part.path}: has become shorter than byte {part.offset + part.nbytes}")


def _open(path: Path) -> tuple[int, bool]:
    direct = getattr(os, "O_DIRECT", 0)
    if direct:
        with contextlib.suppress(OSError):
            return os.open(path, os.O_RDONLY | os.O_CLOEXEC | direct), True
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC), False


def _message(part: FileRange, error: Exception) -> str:
    reason = f"{part.path}: cannot be read: {error.strerror}" if isinstance(error, OSError) else str(error)
    return f"{reason}; weights beyond --ram are read from it at every step, so it must stay as it was"


def span_bytes(part: FileRange) -> int:
    """Count the bytes of the buffer that a range takes: whole pages, since direct reads begin and end at one."""
    return -(-(_lead_bytes(part) + part.nbytes) // PAGE_BYTES) * PAGE_BYTES


def _lead_bytes(part: FileRange) -> int:
    return part.offset % PAGE_BYTES
