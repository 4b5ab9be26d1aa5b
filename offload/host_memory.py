"""Host columns in RAM of our own, where there is enough of it.

A mapped file comes in pages of 4 KiB, and a processor that reads one after the other stumbles at each: on an EPYC, two
threads read 45 GB/s of the page cache and 60 GB/s of anonymous memory, which comes in pages of 2 MiB. So the columns
are read into one block. It counts once: the pages that the kernel keeps of the file are its cache, and are given up
when memory is wanted.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping

import numpy as np

from offload.devices.base import HostArray, aligned
from offload.errors import OffloadError
from offload.plan import LinearPlacement
from offload.specs import Layout

_READ_BYTES = 16 << 20


def read_into_ram(
    placements: Iterable[LinearPlacement], weights: Mapping[str, HostArray], on_bytes: Callable[[int], None]
) -> dict[str, HostArray]:
    """Whole weights whose host columns lie in RAM; what else they hold is undefined, and takes no memory.

    `weights` are [N, K] or [K, N]. Those that are no mapped file come back as they are, and so do split [K, N] ones,
    whose columns share all pages. `on_bytes` is called with the bytes of every part. Raises OffloadError for a file
    that has become shorter.
    """
    moved, kept = [], {}
    for placement in placements:
        weight = weights[placement.linear.name]
        movable = placement.linear.layout is Layout.NK or len(placement.host) == placement.linear.out_features
        if len(placement.host) and movable and isinstance(weight, np.memmap):
            moved.append((placement, weight))
        else:
            kept[placement.linear.name] = weight
    # numpy asks for huge pages, and untouched ones are not there: the columns of a device take nothing.
    block = np.empty(sum(aligned(weight.nbytes) for _, weight in moved), np.uint8)
    position = 0
    for placement, weight in moved:
        target = block[position : position + weight.nbytes]
        position += aligned(weight.nbytes)
        for start, stop in _byte_ranges(placement, weight):
            _read(weight, start, target[start:stop])
            on_bytes(stop - start)
        kept[placement.linear.name] = target.view(weight.dtype).reshape(weight.shape)
    return kept


def _byte_ranges(placement: LinearPlacement, weight: HostArray) -> Iterator[tuple[int, int]]:
    """The bytes of the host columns within the weight, in parts."""
    first, last = 0, weight.nbytes
    if placement.linear.layout is Layout.NK:
        row_bytes = weight.nbytes // weight.shape[0]
        first, last = placement.host.start * row_bytes, placement.host.stop * row_bytes
    for start in range(first, last, _READ_BYTES):
        yield start, min(start + _READ_BYTES, last)


def _read(weight: "np.memmap[tuple[int, ...], np.dtype[np.generic]]", start: int, target: HostArray) -> None:
    assert weight.filename is not None
    with open(weight.filename, "rb", buffering=0) as file:
        done = 0
        while done < target.nbytes:
            count = os.preadv(file.fileno(), [target[done:].data], weight.offset + start + done)
            if count == 0:
                raise OffloadError(f"{weight.filename}: has become shorter while it was read")
            done += count
