"""Float weights quantised on load: symmetric blocks of 64 with fp16 scales, in RAM of our own."""

import mmap
from collections.abc import Callable, Iterable, Mapping

import numba
import numpy as np

from offload.devices.base import HostArray, aligned
from offload.file_reads import byte_parts
from offload.kernels import host, host_jobs, requantise_loops
from offload.plan import LinearPlacement
from offload.quantised import QuantisedWeight
from offload.specs import REQUANTISED_BLOCK, BlockFormat, ColumnRange, Layout, LinearSpec, WeightFormat

_KERNELS = {Layout.NK: requantise_loops.requantise_nk, Layout.KN: requantise_loops.requantise_kn}
_PART_BYTES = 64 << 20  # after so many, progress is told


def requantise_into_ram(
    placements: Iterable[LinearPlacement], weights: Mapping[str, HostArray], on_bytes: Callable[[int], None]
) -> dict[str, QuantisedWeight]:
    """The host columns of `placements` in their `host_format`, int8 or int4, by the names of their Linears.

    `weights` are whole, [N, K] or [K, N]; they are read where they lie, and nothing else is held of them. What a
    result has of other columns is undefined, and takes no memory. `on_bytes` is called with the bytes of every part
    that was read. int8: scale = largest magnitude / 127. int4: as ggml's Q4_0 with a fitted scale.
    """
    chosen = list(placements)
    sizes = [_sizes(placement) for placement in chosen]
    # numpy asks for huge pages; what is not written to is not there.
    memory = np.empty(sum(aligned(size) for pair in sizes for size in pair), np.uint8)
    position, done = 0, {}
    for placement, (packed_bytes, scale_bytes) in zip(chosen, sizes, strict=True):
        packed = memory[position : position + packed_bytes]
        position += aligned(packed_bytes)
        scales = memory[position : position + scale_bytes]
        position += aligned(scale_bytes)
        linear, host = placement.linear, placement.host
        target = QuantisedWeight(
            packed.reshape(linear.out_features, -(-linear.in_features // REQUANTISED_BLOCK), -1),
            scales.view(np.float16).reshape(linear.out_features, -1),
            None,
            placement.host_format,
            linear.in_features,
        )
        requantise(weights[linear.name], linear, host, target.columns(host.start, host.stop), on_bytes)
        done[linear.name] = target
    return done


def warm_up(kinds: Iterable[tuple[WeightFormat, Layout, WeightFormat]]) -> None:
    """Compile what it takes to quantise weights of a format and layout to int8 or int4."""
    for stored, layout, wanted in kinds:
        _kernel(stored, layout, wanted)
    host.kernel_address(host_jobs.requantise)


def requantise(
    weight: HostArray,
    linear: LinearSpec,
    columns: ColumnRange,
    into: QuantisedWeight,
    on_bytes: Callable[[int], None] = lambda nbytes: None,
) -> None:
    """Write some columns of a whole float weight into `into`, which has as many and is symmetric with fp16 scales."""
    kernel = _kernel(linear.format, linear.layout, into.format)
    job, threads = host.kernel_address(host_jobs.requantise), numba.get_num_threads()
    distance = weight.strides[0] // weight.itemsize
    column_bytes = linear.in_features * weight.itemsize
    # The kernel counts the columns of both from those of the weight.
    packed, scales = (_address(array) - columns.start * array.strides[0] for array in (into.packed, into.scales))
    for start, stop in byte_parts(columns.start, columns.stop, max(1, _PART_BYTES // column_bytes)):
        words = [kernel, _address(weight), distance, linear.in_features, start, stop, packed, scales]
        task = np.array(words, np.int64)
        host.launcher()(job, task.ctypes.data, threads)
        on_bytes((stop - start) * column_bytes)
    if isinstance(weight.base, mmap.mmap):
        # What was read of a mapped file stays in the page cache, and no longer counts as this process's.
        weight.base.madvise(mmap.MADV_DONTNEED)


def _sizes(placement: LinearPlacement) -> tuple[int, int]:
    """Bytes of the packed weight and of its scales."""
    linear, blocks = placement.linear, BlockFormat.made_on_load(placement.host_format)
    return (
        linear.out_features * blocks.number_bytes(linear.in_features),
        linear.out_features * blocks.scale_bytes(linear.in_features),
    )


def _address(array: HostArray) -> int:
    return int(array.__array_interface__["data"][0])


def _kernel(stored: WeightFormat, layout: Layout, wanted: WeightFormat) -> int:
    return host.quantised_kernel_address(_KERNELS[layout], _BITS[wanted], REQUANTISED_BLOCK, stored)


_BITS = {WeightFormat.INT8: 8, WeightFormat.INT4: 4}
