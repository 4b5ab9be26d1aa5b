"""Weights out of their files into memory of our own, by several threads; mapped pages would count as this process's."""

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

from offload.errors import OffloadError
from offload.spec.arrays import HostArray
from offload.weights.mapped_file import file_of, offset_in_file

READERS = 4  # one alone waits between its requests, and reads virtual disks more slowly
_BAND_BYTES = 4 << 20  # what a thread reads at once when it wants some columns of it only


def run_parallel(
    jobs: Iterable[tuple[Callable[[], None], int]], on_bytes: Callable[[int], None] = lambda nbytes: None
) -> None:
    """Run jobs on READERS threads and tell the bytes of each, in order, from this thread.

    Raises what a job raises; the others that have begun are waited for, and the rest left out.
    """
    with ThreadPoolExecutor(READERS, "load") as pool:
        futures = [(pool.submit(job), nbytes) for job, nbytes in jobs]
        try:
            for future, nbytes in futures:
                future.result()
                on_bytes(nbytes)
        finally:
            pool.shutdown(cancel_futures=True)


def copy_part(weight: HostArray, rows: slice, columns: slice, out: HostArray) -> None:
    """Write `weight[rows, columns]` into `out`, a matrix of that shape and dtype; mapped files are read, not mapped in.

    Raises OffloadError for a file that has become shorter or cannot be read.
    """
    if file_of(weight) is None:
        out[:] = weight[rows, columns]
        return
    row_bytes, first = weight.nbytes // weight.shape[0], rows.start
    if out.shape[1] == weight.shape[1] and out.flags.c_contiguous:
        read_bytes(weight, first * row_bytes, out.reshape(-1).view(np.uint8))
        return
    band = max(1, _BAND_BYTES // row_bytes)
    for start in range(0, len(out), band):
        whole = np.empty((min(band, len(out) - start), weight.shape[1]), weight.dtype)
        read_bytes(weight, (first + start) * row_bytes, whole.reshape(-1).view(np.uint8))
        out[start : start + band] = whole[:, columns]


def read_bytes(weight: HostArray, start: int, target: npt.NDArray[np.uint8]) -> None:
    """Fill `target` with bytes from byte `start` of a mapped weight on, past its mapping. Raises OffloadError."""
    mapped = file_of(weight)
    assert mapped is not None
    try:
        with open(mapped.path, "rb", buffering=0) as file:
            mapped.check_same(file.fileno())
            position, done = offset_in_file(weight) + start, 0
            while done < target.nbytes:
                count = os.preadv(file.fileno(), [target[done:].data], position + done)
                if count == 0:
                    raise OffloadError(f"{mapped.path}: has become shorter while it was read")
                done += count
    except OSError as error:
        raise OffloadError(f"{mapped.path}: cannot be read: {error.strerror}") from None


def byte_parts(first: int, last: int, part_bytes: int) -> Iterator[tuple[int, int]]:
    """Ranges of at most `part_bytes` from `first` to `last`."""
    for start in range(first, last, part_bytes):
        yield start, min(start + part_bytes, last)
