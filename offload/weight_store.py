"""Where device columns live: resident ones in one block of device memory, streamed ones in pinned RAM."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from offload.devices.base import Device, DeviceAllocation, DeviceArray, HostArray, aligned
from offload.file_reads import READERS, run_parallel
from offload.packing import (
    ColumnMatrix,
    packed_stream_bytes,
    resident_bytes,
    resident_matrices,
    split_columns,
    staging_bytes,
    streamed_matrices,
)
from offload.plan import LinearPlacement
from offload.specs import Layout, LinearSpec
from offload.stream import Piece

PINNED_BLOCK_BYTES = 256 * 2**20  # the driver finds many blocks more easily than a big one


class WeightStore:
    """The device columns of a set of placements: `reserve` and then `load` them."""

    def __init__(self, device: Device, placements: Sequence[LinearPlacement], slot_bytes: int) -> None:
        """Reserve pinned RAM. Raises OutOfDeviceMemoryError, with nothing left reserved."""
        self.resident = resident_matrices(placements)
        self.streamed: list[ColumnMatrix] = []  # one for each piece
        self._device = device
        self._placements = tuple(placements)
        sizes = []
        for matrix in streamed_matrices(placements):
            for part in split_columns(matrix.columns, matrix.column_bytes, slot_bytes):
                self.streamed.append(matrix.cut(part))
                sizes.append(self.streamed[-1].nbytes)
            sizes[-1] += aligned(matrix.nbytes) - matrix.nbytes  # so that the next matrix begins aligned
        assert sum(sizes) == packed_stream_bytes(placements)
        self.pieces = tuple(
            Piece(data[: matrix.nbytes], matrix.shape, matrix.format)
            for matrix, data in zip(self.streamed, _pinned(device, sizes), strict=True)
        )
        self._memory: DeviceAllocation | None = None
        self.arrays: list[DeviceArray] = []  # of the resident matrices

    def reserve(self) -> None:
        """Reserve device memory for what is resident. Raises OutOfDeviceMemoryError.

        It should come after all other memory, whatever takes any: a device that holds a budget then measures what is
        left for it.
        """
        nbytes = resident_bytes(self._placements)
        self._memory = self._device.allocate(nbytes) if nbytes else None
        offset_bytes = 0
        for matrix in self.resident:
            assert self._memory is not None
            self.arrays.append(DeviceArray(self._memory, offset_bytes, matrix.shape, matrix.format))
            offset_bytes += aligned(matrix.nbytes)

    def load(self, weights: Mapping[str, HostArray], on_bytes: Callable[[int], None] | None = None) -> None:
        """Fill the store from whole weights, [K, N] or [N, K] in their storage dtype, and wait for it.

        `on_bytes` is called with the number of bytes after every part. A hollow device reads nothing. Raises
        ValueError for a weight that differs from its LinearSpec, OffloadError for a file that cannot be read.
        """
        for matrix in (*self.streamed, *self.resident):
            for linear, _ in matrix.segments:
                _check_weight(linear, weights[linear.name])
        if self._device.hollow:
            return
        report = on_bytes or (lambda nbytes: None)
        jobs = []
        for matrix, piece in zip(self.streamed, self.pieces, strict=True):
            pinned = piece.pinned.view(matrix.format.storage_dtype).reshape(matrix.shape)
            jobs.append((partial(matrix.read_rows, weights, 0, pinned), matrix.nbytes))
        run_parallel(jobs, report)
        if self.resident:
            self._load_resident(weights, report)

    def close(self) -> None:
        """Free the device memory. All work that uses it must have been waited for."""
        if self._memory is not None:
            self._device.free(self._memory)
            self._memory = None

    def _load_resident(self, weights: Mapping[str, HostArray], report: Callable[[int], None]) -> None:
        """Read the next rows into one half of the staging buffer while the other is copied."""
        row_bytes = [array.nbytes // array.shape[0] for array in self.arrays]
        half_bytes = staging_bytes(self._placements) // 2
        staging = self._device.allocate_pinned(2 * half_bytes)
        stream = self._device.stream("load")
        halves = [(staging[:half_bytes], self._device.event()), (staging[half_bytes:], self._device.event())]
        try:
            for matrix, array, row in zip(self.resident, self.arrays, row_bytes, strict=True):
                edges = [*range(0, array.shape[0], half_bytes // row), array.shape[0]]
                for start, stop in pairwise(edges):
                    half, copied = halves[0]
                    halves.reverse()
                    copied.synchronize()  # the host may write to this half only when its last copy is done
                    shape = (stop - start, array.shape[1])
                    data = half[: shape[0] * row]
                    _read_rows(matrix, weights, start, data.view(matrix.format.storage_dtype).reshape(shape))
                    part = DeviceArray(array.allocation, array.offset_bytes + start * row, shape, array.format)
                    stream.copy_to_device(part, data)
                    stream.record(copied)
                    report(data.nbytes)
        finally:
            stream.synchronize()  # nothing may be freed, nor used by other streams, before this


def _read_rows(matrix: ColumnMatrix, weights: Mapping[str, HostArray], start: int, out: HostArray) -> None:
    """As `matrix.read_rows`, by several threads."""
    bands = [len(out) * number // READERS for number in range(READERS + 1)]
    run_parallel(
        (partial(matrix.read_rows, weights, start + first, out[first:last]), 0) for first, last in pairwise(bands)
    )


def _pinned(device: Device, sizes: Sequence[int]) -> list[npt.NDArray[np.uint8]]:
    """Pinned arrays, one after another in blocks of at most PINNED_BLOCK_BYTES unless one is larger."""
    blocks: list[list[int]] = []
    for nbytes in sizes:
        if not blocks or sum(blocks[-1]) + nbytes > PINNED_BLOCK_BYTES:
            blocks.append([])
        blocks[-1].append(nbytes)
    arrays = []
    for block in blocks:
        memory = device.allocate_pinned(sum(block))
        for nbytes in block:
            arrays.append(memory[:nbytes])
            memory = memory[nbytes:]
    return arrays


def _check_weight(linear: LinearSpec, weight: HostArray) -> None:
    shape = (linear.in_features, linear.out_features)
    expected = shape if linear.layout is Layout.KN else shape[::-1]
    if weight.shape != expected or weight.dtype != linear.format.storage_dtype:
        raise ValueError(
            f"{linear.name}: expected a weight {list(expected)} of {linear.format.storage_dtype},"
            f" not {list(weight.shape)} of {weight.dtype}"
        )
