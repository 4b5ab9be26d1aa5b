"""Where device columns live: resident ones in one block of device memory, streamed ones in pinned RAM."""

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from offload.devices.base import Device, DeviceArray, HostArray, aligned
from offload.packing import (
    ColumnMatrix,
    packed_stream_bytes,
    resident_bytes,
    resident_matrices,
    split_columns,
    streamed_matrices,
)
from offload.plan import LinearPlacement
from offload.specs import Layout, LinearSpec
from offload.stream import Piece

PINNED_BLOCK_BYTES = 256 * 2**20  # the driver finds many blocks more easily than a big one
STAGING_BYTES = 64 * 2**20  # pinned memory that resident weights pass through at load


class WeightStore:
    """The device columns of a set of placements: allocated at once, filled by `load`."""

    def __init__(self, device: Device, placements: Sequence[LinearPlacement], slot_bytes: int) -> None:
        """Reserve device memory and pinned RAM. Raises OutOfDeviceMemoryError, with nothing left reserved."""
        self.resident = resident_matrices(placements)
        self.streamed: list[ColumnMatrix] = []  # one for each piece
        self._device = device
        # Pinned RAM first: it goes away by itself when the allocation of device memory fails.
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
        nbytes = resident_bytes(placements)
        self._memory = device.allocate(nbytes) if nbytes else None
        self.arrays: list[DeviceArray] = []  # of the resident matrices
        offset_bytes = 0
        for matrix in self.resident:
            assert self._memory is not None
            self.arrays.append(DeviceArray(self._memory, offset_bytes, matrix.shape, matrix.format))
            offset_bytes += aligned(matrix.nbytes)

    def load(self, weights: Mapping[str, HostArray], on_bytes: Callable[[int], None] | None = None) -> None:
        """Fill the store from whole weights, [K, N] or [N, K] in their storage dtype, and wait for it.

        `on_bytes` is called with the number of bytes after every part. A hollow device reads nothing. Raises
        ValueError for a weight that differs from its LinearSpec.
        """
        for matrix in (*self.streamed, *self.resident):
            for linear, _ in matrix.segments:
                _check_weight(linear, weights[linear.name])
        if self._device.hollow:
            return
        report = on_bytes or (lambda nbytes: None)
        for matrix, piece in zip(self.streamed, self.pieces, strict=True):
            matrix.read_rows(weights, 0, piece.pinned.view(matrix.format.storage_dtype).reshape(matrix.shape))
            report(matrix.nbytes)
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
        largest = max(array.nbytes for array in self.arrays)
        half_bytes = aligned(max(*row_bytes, min(STAGING_BYTES // 2, largest)))
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
                    matrix.read_rows(weights, start, data.view(matrix.format.storage_dtype).reshape(shape))
                    part = DeviceArray(array.allocation, array.offset_bytes + start * row, shape, array.format)
                    stream.copy_to_device(part, data)
                    stream.record(copied)
                    report(data.nbytes)
        finally:
            stream.synchronize()  # nothing may be freed, nor used by other streams, before this


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
