"""The ring: streamed weights on their way from pinned RAM through a few slots of device memory.

Pieces are used in one fixed order, step after step, and weights do not depend on activations. So whenever a
slot is released, the next piece that needs one is queued at once, be it of the next level or the next step.

Activations do not stand in line behind them: see `DeviceStream.fetch`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from offload.devices.base import (
    Device,
    DeviceAllocation,
    DeviceArray,
    DeviceBlocks,
    DeviceEvent,
    DeviceStream,
    DeviceWeight,
)
from offload.plan.packing import ColumnMatrix
from offload.spec.arrays import ALIGNMENT_BYTES, HostArray


def lying_at(matrix: ColumnMatrix, allocation: DeviceAllocation, offset_bytes: int) -> DeviceWeight:
    """The matrix in device memory."""
    if matrix.blocks is not None:
        return DeviceBlocks(allocation, offset_bytes, matrix.columns, matrix.in_features, matrix.blocks)
    return DeviceArray(allocation, offset_bytes, matrix.shape, matrix.format)


@dataclass(frozen=True)
class Piece:
    """A weight matrix in pinned memory, small enough for a slot.

    `pinned` is all its bytes, or a matrix of floats whose rows lie apart, or the arrays of a block-quantised weight.
    """

    matrix: ColumnMatrix
    pinned: tuple[HostArray, ...]


@dataclass(frozen=True)
class _Slot:
    offset_bytes: int
    ready: DeviceEvent  # the copy into it is done
    free: DeviceEvent  # the computation on it is done


class WeightRing:
    """Slots in device memory that one copy stream fills with pieces, in order and round and round.

    Every piece goes: `acquire`, queue work on the compute stream, `release`. Both only queue; neither blocks.
    """

    def __init__(self, device: Device, compute: DeviceStream, slots: int, slot_bytes: int) -> None:
        """Allocate the slots; `retarget` begins the copies. Raises OutOfDeviceMemoryError."""
        if slots < 1:
            raise ValueError(f"streaming needs at least one slot, not {slots}")
        if slot_bytes % ALIGNMENT_BYTES:
            raise ValueError(f"a slot of {slot_bytes} bytes is not a multiple of {ALIGNMENT_BYTES}")
        self._device = device
        self._compute = compute
        self._copies = device.stream("weight copies")
        self._pieces: Sequence[Piece] = ()
        self._memory = device.allocate(slots * slot_bytes)
        self._slots = [_Slot(i * slot_bytes, device.event(), device.event()) for i in range(slots)]
        # Both count pieces since the last `retarget`: number n is pieces[n % len(pieces)] in slot n % slots.
        self._queued = 0
        self._released = 0

    def retarget(self, pieces: Sequence[Piece]) -> None:
        """Fill the slots with `pieces` from here on, instead of those before; nothing if it does so already.

        The pieces' bytes must stay as they are from here on.
        """
        if pieces is self._pieces:
            return
        self._pieces = pieces
        self._queued = self._released = 0
        # What lies in the slots or is on its way there is dropped. New copies come after the old ones, on the same
        # stream; but work that was interrupted may still read a slot that it never released.
        for slot in self._slots if pieces else ():
            self._release_slot(slot)
            self._queue_copy()

    def acquire(self, piece: int) -> DeviceWeight:
        """Give piece number `piece` for work that is queued on the compute stream from here on.

        Pieces that come before it are released unused, so that a level may be left out.
        """
        while self._released % len(self._pieces) != piece:
            self.release()
        slot = self._slots[self._released % len(self._slots)]
        # The compute stream may read the slot only when the copy into it is done.
        self._compute.wait(slot.ready)
        return self._weight(slot, self._pieces[piece])

    def release(self) -> None:
        """Release the slot of the acquired piece after the work queued so far, and refill it."""
        slot = self._slots[self._released % len(self._slots)]
        self._released += 1
        self._release_slot(slot)
        self._queue_copy()

    def close(self) -> None:
        """Free the slots. The compute stream must have been synchronised."""
        self._copies.synchronize()
        self._device.free(self._memory)

    def _release_slot(self, slot: _Slot) -> None:
        # The copy stream may overwrite the slot only when the compute stream has read it.
        self._compute.record(slot.free)
        self._copies.wait(slot.free)

    def _queue_copy(self) -> None:
        slot = self._slots[self._queued % len(self._slots)]
        piece = self._pieces[self._queued % len(self._pieces)]
        self._queued += 1
        weight = self._weight(slot, piece)
        if isinstance(weight, DeviceBlocks):
            parts = (weight.whole,) if len(piece.pinned) == 1 else weight.parts
        else:
            parts = (weight,)
        for part, pinned in zip(parts, piece.pinned, strict=True):
            self._copies.copy_to_device(part, pinned)
        self._copies.record(slot.ready)

    def _weight(self, slot: _Slot, piece: Piece) -> DeviceWeight:
        return lying_at(piece.matrix, self._memory, slot.offset_bytes)
