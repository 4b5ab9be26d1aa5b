"""The memory of the simulated device: bytes that begin as NaN, know who used them, and notice misuse."""

import weakref
from mmap import PAGESIZE

import numpy as np
import numpy.typing as npt

from offload.devices.base import DeviceArray, DeviceBlocks
from offload.devices.simulated.happens_before import AccessHistory, Clock
from offload.spec.arrays import HostArray
from offload.spec.linear import WeightFormat

POISON = 0xFF  # NaN in fp32, fp16 and bf16

Place = tuple[AccessHistory, int, int]  # the block's accesses, first byte, byte after the last


class DeviceMisuseError(AssertionError):
    """Memory or shapes that a real device would not notice, or would crash on."""


class SimulatedAllocation:
    """Device memory: bytes that only the effects of operations touch. A hollow one has none, only a size."""

    def __init__(self, nbytes: int, hollow: bool = False) -> None:
        self.nbytes = nbytes
        self.data = np.full(0 if hollow else nbytes, POISON, np.uint8)
        self.history = AccessHistory(f"a device allocation of {nbytes} bytes")
        self.freed = False

    def free(self) -> None:
        """Poison the bytes and refuse every later use."""
        self.data[:] = POISON
        self.freed = True


class PinnedBlocks:
    """The page-locked host memory there is; a block lives as long as its array or a view of it."""

    def __init__(self) -> None:
        self._blocks: dict[int, tuple[int, AccessHistory]] = {}  # address -> bytes, accesses
        self._registered: dict[int, range] = {}  # address -> pages

    def allocate(self, nbytes: int, hollow: bool = False) -> npt.NDArray[np.uint8]:
        """A new block; a hollow one takes addresses, and memory only where it is written to."""
        block = np.zeros(nbytes, np.uint8) if hollow else np.full(nbytes, POISON, np.uint8)
        address = block.ctypes.data
        self._blocks[address] = (nbytes, AccessHistory(f"a pinned block of {nbytes} bytes"))
        weakref.finalize(block, self._blocks.pop, address).atexit = False
        return block

    def register(self, array: npt.NDArray[np.uint8]) -> None:
        """Take in a block of somebody else's memory. Raises DeviceMisuseError."""
        address = array.ctypes.data
        pages = range(address // PAGESIZE, -(-(address + array.nbytes) // PAGESIZE))
        if not array.flags.c_contiguous or not array.flags.writeable:
            raise DeviceMisuseError("only contiguous memory of our own can be pinned")
        if any(pages.start < other.stop and other.start < pages.stop for other in self._registered.values()):
            raise DeviceMisuseError(f"some pages of {array.nbytes} bytes to be pinned are pinned already")
        self._registered[address] = pages
        self._blocks[address] = (array.nbytes, AccessHistory(f"a registered block of {array.nbytes} bytes"))

    def unregister(self, array: npt.NDArray[np.uint8], clock: Clock) -> None:
        """Undo `register`; `clock` is what the host knows. Raises StreamOrderError."""
        _, history = self._blocks[array.ctypes.data]
        history.require_known(clock, "unpinning")
        del self._blocks[array.ctypes.data], self._registered[array.ctypes.data]

    def find(self, array: HostArray, rows_apart: bool = False) -> tuple[npt.NDArray[np.uint8], Place]:
        """The bytes of a host array, as a matrix if its rows may lie apart, and their place in their block.

        Raises DeviceMisuseError.
        """
        data, span = array, array.nbytes
        if array.flags.c_contiguous:
            data = array.reshape(-1)
        elif rows_apart and array.ndim == 2 and array.strides[1] == array.itemsize:
            span += (len(array) - 1) * (array.strides[0] - array.nbytes // len(array))
        else:
            raise DeviceMisuseError("a copy needs a contiguous host array")
        start = array.ctypes.data
        for address, (nbytes, history) in self._blocks.items():
            if address <= start and start + span <= address + nbytes:
                return data.view(np.uint8), (history, start - address, start - address + span)
        raise DeviceMisuseError(f"a copy of {array.nbytes} bytes to or from memory that is not pinned")


def device_bytes(array: DeviceArray) -> npt.NDArray[np.uint8]:
    """The bytes of a device array. Raises DeviceMisuseError."""
    block = array.allocation
    assert isinstance(block, SimulatedAllocation)
    if block.freed:
        raise DeviceMisuseError(f"use of freed device memory, a matrix of shape {array.shape}")
    stop = array.offset_bytes + array.nbytes
    if array.offset_bytes < 0 or stop > block.nbytes:
        raise DeviceMisuseError(f"bytes {array.offset_bytes}..{stop} of a block of {block.nbytes} bytes")
    return block.data[array.offset_bytes : stop]


def device_place(array: DeviceArray | DeviceBlocks) -> Place:
    """Locate a device array in its allocation."""
    block = array.allocation
    assert isinstance(block, SimulatedAllocation)
    return block.history, array.offset_bytes, array.offset_bytes + array.nbytes


def as_float32(array: DeviceArray) -> npt.NDArray[np.float32]:
    """The values of a device array, exactly."""
    stored = device_bytes(array).view(array.format.storage_dtype).reshape(array.shape)
    if array.format is WeightFormat.BF16:  # the upper half of an fp32
        return (stored.astype(np.uint32) << 16).view(np.float32)
    return stored.astype(np.float32, copy=False)
