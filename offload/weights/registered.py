"""Host columns that prefill streams: pieces of the host's own memory, read by the device where they lie.

Only the pages of those columns are registered. A mapped file is never registered.
"""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from mmap import PAGESIZE

import numpy as np
import numpy.typing as npt

from offload.devices.base import Device
from offload.errors import PinningError
from offload.plan.packing import ColumnMatrix, split_columns
from offload.plan.plan import LinearPlacement
from offload.spec.arrays import HostArray
from offload.spec.linear import ColumnRange
from offload.storage.stored_weight import StoredWeight
from offload.weights.vram_ring import Piece


def host_pieces(
    placements: Iterable[LinearPlacement], weights: Mapping[str, StoredWeight], slot_bytes: int
) -> list[Piece]:
    """The columns that prefill streams beyond those of decode, in pieces of one Linear each.

    `weights` are host columns, which the pieces are views of.
    """
    pieces = []
    for placement in placements:
        linear, first = placement.linear, placement.streamed.stop
        beyond = placement.streamed_in(prefill=True).stop - first
        if beyond == 0:
            continue
        weight = weights[linear.name]
        whole = ColumnMatrix(((linear, ColumnRange(first, first + beyond)),), placement.host_blocks)
        for part in split_columns(beyond, whole.column_bytes, slot_bytes):
            arrays = [array.array() for array in weight.columns(part.start, part.stop).arrays]
            pieces.append(Piece(whole.cut(part), tuple(array.reshape(len(array), -1) for array in arrays)))
    return pieces


def pin(device: Device, pieces: Sequence[Piece], stack: ExitStack) -> None:
    """Register the memory of `pieces` with the device; `stack` gets what undoes it.

    Raises PinningError, with nothing left registered.
    """
    blocks: dict[int, tuple[npt.NDArray[np.uint8], list[tuple[int, int]]]] = {}
    for piece in pieces:
        for array in piece.pinned:
            memory = _own_memory(piece.matrix, array)
            start = array.ctypes.data - memory.ctypes.data
            row_bytes = array.shape[1] * array.itemsize
            stop = start + (len(array) - 1) * array.strides[0] + row_bytes
            blocks.setdefault(memory.ctypes.data, (memory, []))[1].append((start, stop))
    with ExitStack() as registered:
        for memory, ranges in blocks.values():
            for start, stop in _whole_pages(ranges, memory.ctypes.data, memory.nbytes):
                part = memory[start:stop]
                device.pin(part)
                registered.callback(device.unpin, part)
        stack.enter_context(registered.pop_all())


def _own_memory(matrix: ColumnMatrix, pinned: HostArray) -> npt.NDArray[np.uint8]:
    """All bytes of the allocation that holds a piece. Raises PinningError for a mapped file."""
    owner = pinned
    while isinstance(owner.base, np.ndarray):
        owner = owner.base
    if not owner.flags.owndata or not owner.flags.c_contiguous:
        name = matrix.segments[0][0].name
        raise PinningError(f"the host columns of {name} are in a mapped file, not in memory of our own")
    return owner.reshape(-1).view(np.uint8)


def _whole_pages(ranges: Iterable[tuple[int, int]], address: int, nbytes: int) -> list[tuple[int, int]]:
    """The pages, as ranges of bytes within a block, that hold `ranges`: a page can be registered only once."""
    pages: list[tuple[int, int]] = []
    for start, stop in sorted(ranges):
        first = max(0, (address + start) // PAGESIZE * PAGESIZE - address)
        last = min(nbytes, -(-(address + stop) // PAGESIZE) * PAGESIZE - address)
        if pages and first <= pages[-1][1]:
            first, last = pages[-1][0], max(last, pages[-1][1])
            pages.pop()
        pages.append((first, last))
    return pages
