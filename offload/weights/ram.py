"""Host columns in RAM of our own, where there is enough of it.

A mapped file comes in pages of 4 KiB, and a processor that reads one after the other stumbles at each: on an EPYC, two
threads read 45 GB/s of the page cache and 60 GB/s of anonymous memory, which comes in pages of 2 MiB. So the columns
are read into one block. It counts once: the pages that the kernel keeps of the file are its cache, and are given up
when memory is wanted.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial

import numpy as np

from offload.plan.plan import LinearPlacement
from offload.spec.arrays import HostArray, aligned
from offload.spec.linear import Dense, Layout
from offload.spec.stored_weight import StoredWeight
from offload.weights.mapped_file import file_of
from offload.weights.reads import byte_parts, read_bytes, run_parallel

_READ_BYTES = 16 << 20


def read_into_ram(
    placements: Iterable[LinearPlacement], weights: Mapping[str, StoredWeight], on_bytes: Callable[[int], None]
) -> dict[str, StoredWeight]:
    """Whole weights whose host columns lie in RAM; what else they hold is undefined, and takes no memory.

    Matrices of floats that are no mapped file come back as they are, and so do split [K, N] ones, whose columns share
    all pages. `on_bytes` is called with the bytes of every part. Raises OffloadError for a file that has become
    shorter or cannot be read.
    """
    kept, moved = {}, list[tuple[LinearPlacement, StoredWeight]]()
    for placement in placements:
        weight = weights[placement.linear.name]
        if _moves(placement, weight):
            moved.append((placement, weight))
        else:
            kept[placement.linear.name] = weight
    arrays = [(placement, array) for placement, weight in moved for array in weight.arrays]
    ranges = [_host_bytes(placement, array) for placement, array in arrays]
    # The bytes that are read lie one after another: what comes before them in an array lies where the arrays before
    # it are, and is never looked at. numpy asks for huge pages, and untouched ones are not there.
    position = max((first for first, _ in ranges), default=0)
    tail = max((array.nbytes - last for (_, array), (_, last) in zip(arrays, ranges, strict=True)), default=0)
    block = np.empty(position + sum(aligned(last - first) for first, last in ranges) + tail, np.uint8)
    jobs: list[tuple[Callable[[], None], int]] = []
    copies = []
    for (_, array), (first, last) in zip(arrays, ranges, strict=True):
        target = block[position - first :][: array.nbytes]
        position += aligned(last - first)
        if file_of(array) is None:
            stored = array.reshape(-1).view(np.uint8)
            jobs.append((partial(np.copyto, target[first:last], stored[first:last]), last - first))
        else:
            for start, stop in byte_parts(first, last, _READ_BYTES):
                jobs.append((partial(read_bytes, array, start, target[start:stop]), stop - start))
        copies.append(target.view(array.dtype).reshape(array.shape))
    copy = iter(copies)
    for placement, weight in moved:
        kept[placement.linear.name] = replace(weight, arrays=tuple(next(copy) for _ in weight.arrays))
    run_parallel(jobs, on_bytes)
    return kept


def _moves(placement: LinearPlacement, weight: StoredWeight) -> bool:
    if isinstance(weight.storage, Dense):
        movable = weight.storage.layout is Layout.NK or len(placement.host) == weight.out_features
        return movable and len(placement.host) > 0 and file_of(weight.arrays[0]) is not None
    return len(placement.host) > 0


def _host_bytes(placement: LinearPlacement, array: HostArray) -> tuple[int, int]:
    """The first byte of the host columns within an array of a weight, and the one after the last."""
    if len(placement.host) == placement.linear.out_features:
        return 0, array.nbytes
    row_bytes = array.nbytes // len(array)
    return placement.host.start * row_bytes, placement.host.stop * row_bytes
