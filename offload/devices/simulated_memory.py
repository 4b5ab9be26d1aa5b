"""The memory of the simulated device: bytes that begin as NaN, know who used them, and notice misuse."""

import weakref

import numpy as np
import numpy.typing as npt

from offload.devices.base import DeviceArray, HostArray
from offload.devices.happens_before import AccessHistory
from offload.specs import WeightFormat

POISON = 0xFF  # NaN in fp32, fp16 and bf16

Place = tuple[AccessHistory, int, int]  # the block's accesses, first byte, byte after the last


class DeviceMisuseError(AssertionError):
    """Memory or shapes that a real device would not notice, or would crash on."""


class SimulatedAllocation:
    """Device memory: bytes that only the effects of operations touch."""

    def __init__(self, nbytes: int) -> None:
        self.data = np.full(nbytes, POISON, np.uint8)
        self.history = AccessHistory(f"a device allocation of {nbytes} bytes")
        self.freed = False

    @property
    def nbytes(self) -> int:
        """Bytes of the block."""
        return self.data.nbytes

    def free(self) -> None:
        """Poison the bytes and refuse every later use."""
        self.data[:] = POISON
        self.freed = True


class PinnedBlocks:
    """The page-locked host memory there is; a block lives as long as its array or a view of it."""

    def __init__(self) -> None:
        self._blocks: dict[int, tuple[int, AccessHistory]] = {}  # address -> bytes, accesses

    def allocate(self, nbytes: int) -> npt.NDArray[np.uint8]:
        """A new block."""
        block = np.full(nbytes, POISON, np.uint8)
        address = block.ctypes.data
        self._blocks[address] = (nbytes, AccessHistory(f"a pinned block of {nbytes} bytes"))
        weakref.finalize(block, self._blocks.pop, address).atexit = False
        return block

    def find(self, array: HostArray) -> tuple[npt.NDArray[np.uint8], Place]:
        """The bytes of a host array, and their place in their block. Raises DeviceMisuseError."""
        if not array.flags.c_contiguous:
            raise DeviceMisuseError("a copy needs a contiguous host array")
        start = array.ctypes.data
        for address, (nbytes, history) in self._blocks.items():
            if address <= start and start + array.nbytes <= address + nbytes:
                data = array.reshape(-1).view(np.uint8)
                return data, (history, start - address, start - address + array.nbytes)
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


def device_place(array: DeviceArray) -> Place:
    """Where a device array lies in its allocation."""
    block = array.allocation
    assert isinstance(block, SimulatedAllocation)
    return block.history, array.offset_bytes, array.offset_bytes + array.nbytes


def as_float32(array: DeviceArray) -> npt.NDArray[np.float32]:
    """The values of a device array, exactly."""
    stored = device_bytes(array).view(array.format.storage_dtype).reshape(array.shape)
    if array.format is WeightFormat.BF16:  # the upper half of an fp32
        return (stored.astype(np.uint32) << 16).view(np.float32)
    return stored.astype(np.float32, copy=False)
