"""Keeps device columns: resident ones in one block of device memory, streamed ones in pinned RAM."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from offload.devices.base import Device, DeviceAllocation, DeviceArray, DeviceBlocks, DeviceWeight
from offload.plan.packing import (
    ColumnMatrix,
    packed_stream_bytes,
    resident_bytes,
    resident_matrices,
    split_columns,
    staging_bytes,
    streamed_matrices,
)
from offload.plan.plan import LinearPlacement
from offload.spec.arrays import aligned
from offload.spec.linear import ColumnRange, LinearSpec
from offload.storage.stored_weight import StoredWeight
from offload.weights.column_reads import read_blocks, read_rows
from offload.weights.reads import READERS, run_parallel
from offload.weights.vram_ring import Piece, lying_at

PINNED_BLOCK_BYTES = 256 * 2**20  # the driver finds many blocks more easily than a big one
_ONE_THREAD_BYTES = 2**20


class WeightStore:
    """The device columns of a set of placements: `reserve` and then `load` them."""

    def __init__(self, device: Device, placements: Sequence[LinearPlacement], slot_bytes: int) -> None:
        """Reserve pinned RAM. Raises OutOfDeviceMemoryError, with nothing left reserved."""
        self.resident = resident_matrices(placements)
        self._device = device
        self._placements = tuple(placements)
        streamed, sizes = [], []
        for matrix in streamed_matrices(placements):
            for part in split_columns(matrix.columns, matrix.column_bytes, slot_bytes):
                streamed.append(matrix.cut(part))
                sizes.append(streamed[-1].nbytes)
            sizes[-1] += aligned(matrix.nbytes) - matrix.nbytes  # so that the next matrix begins aligned
        assert sum(sizes) == packed_stream_bytes(placements)
        self.pieces = tuple(
            Piece(matrix, (data[: matrix.nbytes],))
            for matrix, data in zip(streamed, _pinned(device, sizes), strict=True)
        )
        self._memory: DeviceAllocation | None = None
        self.weights: list[DeviceWeight] = []  # of the resident matrices

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
            self.weights.append(lying_at(matrix, self._memory, offset_bytes))
            offset_bytes += aligned(matrix.nbytes)

    def load(self, weights: Mapping[str, StoredWeight], on_bytes: Callable[[int], None] | None = None) -> None:
        """Fill the store from whole weights, and wait for it.

        What is streamed in another format than it is stored in is quantised on the way. `on_bytes` is called with the
        number of bytes after every part. A hollow device reads nothing. Raises ValueError for a weight that differs
        from its LinearSpec, OffloadError for a file that cannot be read.
        """
        for matrix in (*(piece.matrix for piece in self.pieces), *self.resident):
            for linear, _ in matrix.segments:
                _check_weight(linear, weights[linear.name])
        if self._device.hollow:
            return
        report = on_bytes or (lambda nbytes: None)
        jobs = []
        for piece in self.pieces:
            (pinned,) = piece.pinned
            if piece.matrix.blocks is not None:  # quantising takes all threads itself
                read_blocks(piece.matrix, weights, pinned)
                report(pinned.nbytes)
                continue
            rows = pinned.view(piece.matrix.format.storage_dtype).reshape(piece.matrix.shape)
            jobs.append((partial(read_rows, piece.matrix, weights, 0, rows), pinned.nbytes))
        run_parallel(jobs, report)
        if self.resident:
            self._load_resident(weights, report)

    def close(self) -> None:
        """Free the device memory. All work that uses it must have been waited for."""
        if self._memory is not None:
            self._device.free(self._memory)
            self._memory = None

    def _load_resident(self, weights: Mapping[str, StoredWeight], report: Callable[[int], None]) -> None:
        """Read the next part into one half of the staging buffer while the other is copied."""
        half_bytes = staging_bytes(self._placements) // 2
        staging = self._device.allocate_pinned(2 * half_bytes)
        stream = self._device.stream("load")
        halves = [(staging[:half_bytes], self._device.event()), (staging[half_bytes:], self._device.event())]
        try:
            for matrix, weight in zip(self.resident, self.weights, strict=True):
                for part in _parts(matrix, weight, half_bytes):
                    half, copied = halves[0]
                    halves.reverse()
                    copied.synchronize()  # the host may write to this half only when its last copy is done
                    part.read(weights, half[: part.nbytes])
                    position = 0
                    for target in part.targets:
                        stream.copy_to_device(target, half[position : position + target.nbytes])
                        position += target.nbytes
                    stream.record(copied)
                    report(part.nbytes)
        finally:
            stream.synchronize()  # nothing may be freed, nor used by other streams, before this


@dataclass(frozen=True)
class _ResidentPart:
    """A part of a resident matrix: how to read its bytes, and where they go, one after another."""

    read: Callable[[Mapping[str, StoredWeight], npt.NDArray[np.uint8]], None]
    targets: tuple[DeviceArray, ...]

    @property
    def nbytes(self) -> int:
        return sum(target.nbytes for target in self.targets)


def _parts(matrix: ColumnMatrix, weight: DeviceWeight, most_bytes: int) -> Iterator[_ResidentPart]:
    """A matrix in parts of at most so many bytes: stored rows of floats, columns of blocks."""
    if isinstance(weight, DeviceBlocks):
        most = most_bytes // matrix.column_bytes
        for start, stop in pairwise([*range(0, matrix.columns, most), matrix.columns]):
            cut = matrix.cut(ColumnRange(start, stop))
            yield _ResidentPart(partial(read_blocks, cut), tuple(part.rows(start, stop) for part in weight.parts))
        return
    count = weight.shape[0]
    most = most_bytes // (matrix.nbytes // count)
    for start, stop in pairwise([*range(0, count, most), count]):
        yield _ResidentPart(partial(_read_rows, matrix, start), (weight.rows(start, stop),))


def _read_rows(
    matrix: ColumnMatrix, start: int, weights: Mapping[str, StoredWeight], out: npt.NDArray[np.uint8]
) -> None:
    """As `read_rows`, by several threads where that is worth starting them."""
    columns = matrix.shape[1]
    rows = out.view(matrix.format.storage_dtype).reshape(-1, columns)
    if out.nbytes < _ONE_THREAD_BYTES:
        read_rows(matrix, weights, start, rows)
        return
    bands = [len(rows) * number // READERS for number in range(READERS + 1)]
    run_parallel(
        (partial(read_rows, matrix, weights, start + first, rows[first:last]), 0) for first, last in pairwise(bands)
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


def _check_weight(linear: LinearSpec, weight: StoredWeight) -> None:
    found = weight.storage, weight.in_features, weight.out_features
    if found != (linear.storage, linear.in_features, linear.out_features):
        sizes = f"{linear.in_features} to {linear.out_features} features in {linear.storage}"
        raise ValueError(f"{linear.name}: expected a weight of {sizes}, not of {found[1]} to {found[2]} in {found[0]}")
