"""Host columns in RAM of our own, where there is enough of it.

A mapped file comes in pages of 4 KiB, and a processor that reads one after the other stumbles at each: on an EPYC, two
threads read 45 GB/s of the page cache and 60 GB/s of anonymous memory, which comes in pages of 2 MiB. So the columns
are read into one block. It counts once: the pages that the kernel keeps of the file are its cache, and are given up
when memory is wanted.
"""

from collections.abc import Callable, Iterable, Mapping
from functools import partial

import numpy as np

from offload.plan.plan import LinearPlacement
from offload.spec.arrays import HostArray, aligned
from offload.spec.linear import ColumnRange, Layout
from offload.spec.quantised import QuantisedWeight
from offload.weights.mapped_file import file_of
from offload.weights.reads import byte_parts, read_bytes, run_parallel

_READ_BYTES = 16 << 20


def read_into_ram(
    placements: Iterable[LinearPlacement], weights: Mapping[str, HostArray], on_bytes: Callable[[int], None]
) -> dict[str, HostArray]:
    """Whole weights whose host columns lie in RAM; what else they hold is undefined, and takes no memory.

    `weights` are [N, K] or [K, N]. Those that are no mapped file come back as they are, and so do split [K, N] ones,
    whose columns share all pages. `on_bytes` is called with the bytes of every part. Raises OffloadError for a file
    that has become shorter or cannot be read.
    """
    moved, kept = [], {}
    for placement in placements:
        weight = weights[placement.linear.name]
        movable = placement.linear.layout is Layout.NK or len(placement.host) == placement.linear.out_features
        if len(placement.host) and movable and file_of(weight) is not None:
            moved.append((placement, weight, *_host_bytes(placement, weight)))
        else:
            kept[placement.linear.name] = weight
    # The bytes that are read lie one after another: what comes before them in a weight lies where the weights before
    # it are, and is never looked at. numpy asks for huge pages, and untouched ones are not there.
    position = max((first for _, _, first, _ in moved), default=0)
    tail = max((weight.nbytes - last for _, weight, _, last in moved), default=0)
    block = np.empty(position + sum(aligned(last - first) for _, _, first, last in moved) + tail, np.uint8)
    jobs = []
    for placement, weight, first, last in moved:
        target = block[position - first :][: weight.nbytes]
        position += aligned(last - first)
        for start, stop in byte_parts(first, last, _READ_BYTES):
            jobs.append((partial(read_bytes, weight, start, target[start:stop]), stop - start))
        kept[placement.linear.name] = target.view(weight.dtype).reshape(weight.shape)
    run_parallel(jobs, on_bytes)
    return kept


def quantised_into_ram(
    weights: Mapping[str, QuantisedWeight], columns: Mapping[str, ColumnRange], on_bytes: Callable[[int], None]
) -> dict[str, QuantisedWeight]:
    """Read block-quantised weights into RAM: those that have `columns`, and of each only these; see `read_into_ram`."""
    arrays = [array for name in columns for array in weights[name].arrays]
    block = np.empty(sum(aligned(array.nbytes) for array in arrays), np.uint8)
    jobs, position = [], 0

    def moved(array: HostArray, part: ColumnRange) -> HostArray:
        nonlocal position
        target = block[position : position + array.nbytes]
        position += aligned(array.nbytes)
        row_bytes = array.nbytes // len(array)
        if file_of(array) is not None:
            for start, stop in byte_parts(part.start * row_bytes, part.stop * row_bytes, _READ_BYTES):
                jobs.append((partial(read_bytes, array, start, target[start:stop]), stop - start))
        else:
            kept = target.view(array.dtype).reshape(array.shape)[part.start : part.stop]
            jobs.append((partial(np.copyto, kept, array[part.start : part.stop]), kept.nbytes))
        return target.view(array.dtype).reshape(array.shape)

    found = {}
    for name, part in columns.items():
        weight = weights[name]
        found[name] = weight.with_arrays([moved(array, part) for array in weight.arrays])
    run_parallel(jobs, on_bytes)
    return found


def _host_bytes(placement: LinearPlacement, weight: HostArray) -> tuple[int, int]:
    """The first byte of the host columns within the weight, and the one after the last."""
    if placement.linear.layout is Layout.KN:
        return 0, weight.nbytes
    row_bytes = weight.nbytes // weight.shape[0]
    return placement.host.start * row_bytes, placement.host.stop * row_bytes
