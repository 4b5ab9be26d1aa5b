"""Float weights quantised on load: symmetric blocks of 64 with fp16 scales, in RAM of our own."""

from collections.abc import Callable, Iterable, Iterator, Mapping

import numpy as np

from offload.host.kernels import compiled, jobs
from offload.host.kernels import requantise as requantise_loops
from offload.host.team import PIECES, shared_team
from offload.spec.arrays import HostArray, aligned
from offload.spec.linear import REQUANTISED_BLOCK, BlockFormat, Layout, WeightFormat
from offload.storage.stored_array import StoredArray
from offload.storage.stored_weight import StoredWeight
from offload.weights.reads import reads, run_parallel

_KERNELS = {Layout.NK: requantise_loops.requantise_nk, Layout.KN: requantise_loops.requantise_kn}
_PART_BYTES = 16 << 20  # what is read of a file at once
_READ_BYTES = 4 << 20  # by one thread


def requantise_into_ram(
    weights: Mapping[str, StoredWeight], formats: Mapping[str, BlockFormat], on_bytes: Callable[[int], None]
) -> dict[str, StoredWeight]:
    """Weights of floats in these formats, which are made on load, in one block of RAM.

    Of those in files 16 MiB are held at a time, or a block of K where that is more. `on_bytes` is called with the bytes
    of every part. int8: scale = largest magnitude / 127. int4: as ggml's Q4_0 with a fitted scale. Raises OffloadError
    for a file that has become shorter or cannot be read.
    """
    sizes = {
        name: weight.out_features * formats[name].column_bytes(weight.in_features) for name, weight in weights.items()
    }
    memory = np.empty(sum(map(aligned, sizes.values())), np.uint8)  # numpy asks for huge pages
    position, done = 0, {}
    for name, weight in weights.items():
        here = memory[position : position + sizes[name]]
        position += aligned(sizes[name])
        done[name] = StoredWeight.over(here, formats[name], weight.in_features, weight.out_features)
        requantise(weight, done[name], on_bytes)
    return done


def warm_up(kinds: Iterable[tuple[WeightFormat, Layout, WeightFormat]]) -> None:
    """Compile what it takes to quantise weights of a format and layout to int8 or int4."""
    for stored, layout, wanted in kinds:
        _kernel(stored, layout, wanted)
    compiled.kernel_address(jobs.requantise)


def requantise(weight: StoredWeight, into: StoredWeight, on_bytes: Callable[[int], None] = lambda nbytes: None) -> None:
    """Write a weight of floats into `into`, of the same size and symmetric with fp16 scales.

    Of a file, 16 MiB are held at a time, or a block of K where that is more. Raises OffloadError for a file that has
    become shorter or cannot be read.
    """
    (matrix,), layout = weight.arrays, weight.storage.layout
    kernel = _kernel(weight.storage.format, layout, into.storage.format)
    job, team = compiled.kernel_address(jobs.requantise), shared_team()
    codes, scales = (array.array() for array in into.arrays)
    for start, part in _parts(matrix, 1 if layout is Layout.NK else REQUANTISED_BLOCK):
        if layout is Layout.NK:  # columns from `start` on
            count, k = part.shape
            target = codes[start:], scales[start:]
        else:  # all columns, and of each the blocks from `start` on
            k, count = part.shape
            target = codes[:, start // REQUANTISED_BLOCK :], scales[:, start // REQUANTISED_BLOCK :]
        ld = part.strides[0] // part.itemsize
        task = np.array([kernel, _address(part), ld, k, scales.shape[1], 0, count, *map(_address, target)], np.int64)
        team.run(job, (task.ctypes.data,), team.threads, min(count, PIECES * team.threads))
        on_bytes(part.nbytes)


def _parts(matrix: StoredArray, unit: int) -> Iterator[tuple[int, HostArray]]:
    """Whole units of rows at a time, and the number of the first; read into a buffer where they lie in a file."""
    rows, columns = matrix.shape
    step = max(1, _PART_BYTES // (columns * matrix.dtype.itemsize) // unit) * unit
    buffer = np.empty((min(step, rows) if matrix.in_file else 0, columns), matrix.dtype)
    for start in range(0, rows, step):
        part = matrix.rows(start, min(start + step, rows))
        if not matrix.in_file:
            yield start, part.array()
            continue
        here = buffer[: part.shape[0]]  # mapped pages would count as this process's
        run_parallel(reads(part, here, _READ_BYTES))
        yield start, here


def _address(array: HostArray) -> int:
    return int(array.__array_interface__["data"][0])


def _kernel(stored: WeightFormat, layout: Layout, wanted: WeightFormat) -> int:
    return compiled.quantised_kernel_address(_KERNELS[layout], _BITS[wanted], REQUANTISED_BLOCK, stored)


_BITS = {WeightFormat.INT8: 8, WeightFormat.INT4: 4}
