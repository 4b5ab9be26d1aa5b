"""Host columns in RAM of our own, where there is enough of it.

A mapped file comes in pages of 4 KiB, and a processor that reads one after the other stumbles at each: on an EPYC, two
threads read 45 GB/s of the page cache and 60 GB/s of anonymous memory, which comes in pages of 2 MiB. So the columns
are read into one block. It counts once: the pages that the kernel keeps of the file are its cache, and are given up
when memory is wanted.
"""

from collections.abc import Callable, Mapping

import numpy as np

from offload.spec.arrays import aligned
from offload.storage.stored_array import StoredArray
from offload.storage.stored_weight import StoredWeight
from offload.weights.reads import reads, run_parallel

_READ_BYTES = 16 << 20


def read_into_ram(weights: Mapping[str, StoredWeight], on_bytes: Callable[[int], None]) -> dict[str, StoredWeight]:
    """The same weights in one block of RAM; those in memory of ours already come back as they are.

    Some columns of a [K, N] weight share all their pages with the others in the file, but not in RAM. `on_bytes` is
    called with the bytes of every part. Raises OffloadError for a file that has become shorter or cannot be read.
    """
    found = dict(weights)
    moved = {name: weight for name, weight in weights.items() if not all(map(_is_ours, weight.arrays))}
    # numpy asks for huge pages.
    block = np.empty(sum(aligned(weight.nbytes) for weight in moved.values()), np.uint8)
    jobs: list[tuple[Callable[[], None], int]] = []
    position = 0
    for name, weight in moved.items():
        memory = block[position : position + weight.nbytes]
        position += aligned(weight.nbytes)
        found[name] = StoredWeight.over(memory, weight.storage, weight.in_features, weight.out_features)
        for source, target in zip(weight.arrays, found[name].arrays, strict=True):
            jobs += reads(source, target.array(), _READ_BYTES)
    run_parallel(jobs, on_bytes)
    return found


def _is_ours(array: StoredArray) -> bool:
    """Tell whether a device may lock its memory: it lies in no file, nor in the bytes of a message that was parsed."""
    return not array.in_file and array.array().flags.writeable
