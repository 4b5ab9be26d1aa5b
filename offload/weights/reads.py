"""Reads of several threads."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from offload.spec.arrays import HostArray
from offload.storage.stored_array import StoredArray

READERS = 4  # one alone waits between its requests, and reads virtual disks more slowly


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


def reads(array: StoredArray, out: HostArray, most_bytes: int) -> Iterator[tuple[Callable[[], None], int]]:
    """Jobs of at most so many bytes, or of one row, that write an array into `out`, and their bytes."""
    for start, stop in split_rows(len(out), out.nbytes // len(out), most_bytes):
        part = array.rows(start, stop)
        yield partial(part.read_into, out[start:stop]), part.nbytes


def split_rows(rows: int, row_bytes: int, most_bytes: int) -> Iterator[tuple[int, int]]:
    """Cut `rows` into near equal ranges of at most `most_bytes`, or of one row where that is more."""
    pieces = -(-rows // max(1, most_bytes // row_bytes))
    for number in range(pieces):
        yield rows * number // pieces, rows * (number + 1) // pieces
