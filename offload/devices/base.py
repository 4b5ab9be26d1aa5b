"""The protocol every device speaks: memory, streams, events, copies and GEMM.

A device is driven from one host thread. Work on a stream runs in the order it was queued; work on two streams
is ordered only by `record` and `wait`. Host memory that a stream copies from or to must be pinned and must not
be touched by the host until an event recorded after the copy has been synchronised.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from offload.specs import Layout, WeightFormat

HostArray = npt.NDArray[Any]


@dataclass(frozen=True)
class DeviceMemory:
    """Free and total memory of a device, in bytes; on a shared GPU others' memory counts as used."""

    free_bytes: int
    total_bytes: int


class DeviceAllocation(Protocol):
    """A block of device memory."""

    @property
    def nbytes(self) -> int: ...


@dataclass(frozen=True)
class DeviceArray:
    """A contiguous row-major matrix inside a device allocation."""

    allocation: DeviceAllocation
    offset_bytes: int
    shape: tuple[int, int]
    format: WeightFormat

    @property
    def nbytes(self) -> int:
        """Bytes from the first to the last element."""
        return self.shape[0] * self.shape[1] * self.format.itemsize_bytes


class DeviceEvent(Protocol):
    """A point in a stream's work; every `record` makes a new one."""

    def synchronize(self) -> None:
        """Block the host until everything before the event is done."""


class DeviceStream(Protocol):
    """A queue of device work."""

    def copy_to_device(self, dst: DeviceArray, src: HostArray) -> None:
        """Queue a copy of `src` (pinned, contiguous, as many bytes as `dst`) into `dst`."""

    def copy_to_host(self, dst: HostArray, src: DeviceArray) -> None:
        """Queue a copy of `src` into `dst` (pinned, contiguous, as many bytes as `src`)."""

    def gemm(self, x: DeviceArray, w: DeviceArray, y: DeviceArray, layout: Layout) -> None:
        """Queue y[M, N] = x[M, K] @ W; `x` and `w` have one format, `y` is fp32, accumulation is fp32.

        `w` is [K, N] for `Layout.KN` and [N, K] for `Layout.NK`.
        """

    def record(self) -> DeviceEvent:
        """Mark this point of the stream."""

    def wait(self, event: DeviceEvent) -> None:
        """Let later work of this stream start only after `event`."""

    def synchronize(self) -> None:
        """Block the host until this stream has nothing left to do."""


class Device(Protocol):
    """Something that multiplies matrices in its own memory."""

    @property
    def name(self) -> str: ...

    @property
    def simulated(self) -> bool:
        """True when times are modelled rather than measured."""

    @property
    def fixed_bytes(self) -> dict[str, int]:
        """Memory this process already takes on the device and cannot give back: context, workspace."""

    def supports(self, weight_format: WeightFormat) -> str:
        """Empty when `gemm` takes this format here, else the reason why it does not."""

    def memory(self) -> DeviceMemory: ...

    def allocate(self, nbytes: int) -> DeviceAllocation:
        """Reserve device memory. Raises OutOfDeviceMemoryError."""

    def free(self, allocation: DeviceAllocation) -> None: ...

    def allocate_pinned(self, nbytes: int) -> npt.NDArray[np.uint8]:
        """Reserve `nbytes` of page-locked host memory. Raises OutOfDeviceMemoryError."""

    def stream(self, name: str) -> DeviceStream:
        """A new stream; `name` labels it in the timeline."""

    def close(self) -> None:
        """Free everything. The device cannot be used afterwards."""
