"""Float weights quantised on load: symmetric blocks of 64 with fp16 scales, in RAM of our own."""

from collections.abc import Callable, Iterable, Mapping
from functools import partial

import numpy as np
import numpy.typing as npt

from offload.host.kernels import compiled, jobs
from offload.host.kernels import requantise as requantise_loops
from offload.host.team import PIECES, shared_team
from offload.plan.plan import LinearPlacement
from offload.spec.arrays import HostArray, aligned
from offload.spec.linear import REQUANTISED_BLOCK, BlockFormat, ColumnRange, Layout, WeightFormat
from offload.spec.stored_weight import StoredWeight
from offload.weights.mapped_file import file_of
from offload.weights.reads import byte_parts, read_bytes, run_parallel

_KERNELS = {Layout.NK: requantise_loops.requantise_nk, Layout.KN: requantise_loops.requantise_kn}
_PART_BYTES = 16 << 20  # what is read of a mapped weight at once
_READ_BYTES = 4 << 20  # by one thread


def requantise_into_ram(
    placements: Iterable[LinearPlacement], weights: Mapping[str, StoredWeight], on_bytes: Callable[[int], None]
) -> dict[str, StoredWeight]:
    """The host columns of `placements` in their `host_format`, int8 or int4, by the names of their Linears.

    `weights` are whole; of those in mapped files 16 MiB are held at a time, or a block of K where
    that is more, past the mapping. What a result has of other columns is undefined, and takes no memory. `on_bytes` is
    called with the bytes of every part. int8: scale = largest magnitude / 127. int4: as ggml's Q4_0 with a fitted
    scale. Raises OffloadError for a file that has become shorter or cannot be read.
    """
    chosen = list(placements)
    formats = [BlockFormat.made_on_load(placement.host_format) for placement in chosen]
    sizes = [
        placement.linear.out_features * blocks.column_bytes(placement.linear.in_features)
        for placement, blocks in zip(chosen, formats, strict=True)
    ]
    # numpy asks for huge pages; what is not written to is not there.
    memory = np.empty(sum(map(aligned, sizes)), np.uint8)
    position, done = 0, {}
    for placement, blocks, nbytes in zip(chosen, formats, sizes, strict=True):
        linear, host = placement.linear, placement.host
        here = memory[position : position + nbytes]
        position += aligned(nbytes)
        done[linear.name] = StoredWeight.over(here, blocks, linear.in_features, linear.out_features)
        requantise(weights[linear.name], host, done[linear.name].columns(host.start, host.stop), on_bytes)
    return done


def warm_up(kinds: Iterable[tuple[WeightFormat, Layout, WeightFormat]]) -> None:
    """Compile what it takes to quantise weights of a format and layout to int8 or int4."""
    for stored, layout, wanted in kinds:
        _kernel(stored, layout, wanted)
    compiled.kernel_address(jobs.requantise)


def requantise(
    weight: StoredWeight,
    columns: ColumnRange,
    into: StoredWeight,
    on_bytes: Callable[[int], None] = lambda nbytes: None,
) -> None:
    """Write some columns of a whole float weight into `into`, which has as many and is symmetric with fp16 scales.

    Of a mapped file, 16 MiB are held at a time, or a block of K where that is more, past the mapping. Raises
    OffloadError for a file that has become shorter or cannot be read.
    """
    (matrix,), layout = weight.arrays, weight.storage.layout
    is_nk = layout is Layout.NK
    kernel = _kernel(weight.storage.format, layout, into.storage.format)
    job, team = compiled.kernel_address(jobs.requantise), shared_team()
    rows = columns if is_nk else ColumnRange(0, weight.in_features)
    step = _rows_a_part(matrix, layout)
    held_rows = min(step, len(rows)) if file_of(matrix) is not None else 0
    buffer = np.empty(held_rows * (matrix.nbytes // len(matrix)), np.uint8)
    (codes, scales), blocks = into.arrays, into.blocks.blocks(into.in_features)
    first_code, first_scale = _address(codes), _address(scales)
    if not is_nk:  # the kernel counts the columns of both from those of the weight
        first_code -= columns.start * codes.strides[0]
        first_scale -= columns.start * scales.strides[0]
    for start in range(rows.start, rows.stop, step):
        stop = min(start + step, rows.stop)
        part = _rows(matrix, start, stop, buffer)
        if is_nk:  # columns from `start` on
            k, first, last, written = weight.in_features, 0, stop - start, (start - columns.start) * blocks
        else:  # all columns, and of each the blocks from `start` on
            k, first, last, written = stop - start, columns.start, columns.stop, start // REQUANTISED_BLOCK
        target = first_code + written * codes.strides[1], first_scale + written * scales.itemsize
        ld = part.strides[0] // part.itemsize
        task = np.array([kernel, _address(part), ld, k, blocks, first, last, *target], np.int64)
        team.run(job, (task.ctypes.data,), team.threads, min(last - first, PIECES * team.threads))
        on_bytes(k * (last - first) * matrix.itemsize)


def _rows_a_part(weight: HostArray, layout: Layout) -> int:
    """Rows of a stored weight that are held at once; whole blocks of K where they are K."""
    unit = 1 if layout is Layout.NK else REQUANTISED_BLOCK
    return max(1, _PART_BYTES * len(weight) // weight.nbytes // unit) * unit


def _rows(weight: HostArray, start: int, stop: int, buffer: npt.NDArray[np.uint8]) -> HostArray:
    """Rows of a stored weight, read into `buffer` where they lie in a file: mapped pages would count as ours."""
    if file_of(weight) is None:
        return weight[start:stop]
    row_bytes = weight.nbytes // len(weight)
    part = buffer[: (stop - start) * row_bytes]
    run_parallel(
        (partial(read_bytes, weight, start * row_bytes + first, part[first:last]), last - first)
        for first, last in byte_parts(0, part.nbytes, _READ_BYTES)
    )
    return part.view(weight.dtype).reshape(stop - start, -1)


def _address(array: HostArray) -> int:
    return int(array.__array_interface__["data"][0])


def _kernel(stored: WeightFormat, layout: Layout, wanted: WeightFormat) -> int:
    return compiled.quantised_kernel_address(_KERNELS[layout], _BITS[wanted], REQUANTISED_BLOCK, stored)


_BITS = {WeightFormat.INT8: 8, WeightFormat.INT4: 4}
