"""Measures how fast one file is read from front to back, past the cache of the kernel."""

import mmap
import os
from contextlib import suppress
from pathlib import Path
from time import perf_counter

_READ_BYTES = 8 << 20


def disk_read_rate(path: Path, longest_s: float) -> float:
    """Bytes a second of reading `path`, for at most `longest_s` seconds; the file must not be empty.

    Where the file system refuses direct reads (tmpfs does), what the kernel keeps of the file is dropped first.
    Raises OSError.
    """
    try:
        file = os.open(path, os.O_RDONLY | os.O_DIRECT)
    except OSError:
        file = os.open(path, os.O_RDONLY)
    try:
        with suppress(OSError):  # only advice
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        with mmap.mmap(-1, _READ_BYTES) as block:  # direct reads want whole pages
            started = perf_counter()
            done, elapsed_s = 0, 0.0
            while elapsed_s < longest_s:
                count = os.preadv(file, [block], done)
                done += count
                elapsed_s = perf_counter() - started
                if count < _READ_BYTES:
                    break
            return done / elapsed_s
    finally:
        os.close(file)
