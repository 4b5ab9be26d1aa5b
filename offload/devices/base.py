"""The protocol every device speaks: memory, streams, events, copies and GEMM.

A device is driven from one host thread at a time. Work on a stream runs in the order it was queued; work on two
streams is ordered only by `record` and `wait`. Host memory that a stream copies from or to must be pinned,
and must not be touched by the host before it has synchronised with a point after the copy.

Any call can raise DeviceLostError, and every later one does then, but for those that give something back: `free` and
`close` neither raise nor wait, and `take_trace` has no spans.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from offload.spec.arrays import HostArray
from offload.spec.linear import Activations, BlockFormat, Layout, LinearSpec, WeightFormat


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

    def rows(self, start: int, stop: int) -> "DeviceArray":
        """Rows `start <= row < stop` as stored."""
        before_bytes = start * self.shape[1] * self.format.itemsize_bytes
        shape = (stop - start, self.shape[1])
        return DeviceArray(self.allocation, self.offset_bytes + before_bytes, shape, self.format)


@dataclass(frozen=True)
class DeviceBlocks:
    """Columns of a block-quantised weight, inside a device allocation.

    First the codes of all columns, then their scales, then their zero points where there are any, as BlockFormat
    says, with nothing in between.
    """

    allocation: DeviceAllocation
    offset_bytes: int
    columns: int
    in_features: int
    blocks: BlockFormat

    @property
    def nbytes(self) -> int:
        """Bytes from the first to the last element."""
        return self.columns * self.blocks.column_bytes(self.in_features)

    @property
    def codes(self) -> DeviceArray:
        """uint8 [columns, bytes]."""
        return self._part(0, self.blocks.code_bytes(self.in_features), WeightFormat.INT8)

    @property
    def scales(self) -> DeviceArray:
        """fp16 or fp32 [columns, blocks]."""
        before = self.columns * self.blocks.code_bytes(self.in_features)
        return self._part(before, self.blocks.blocks(self.in_features), self.blocks.scales)

    @property
    def zeros(self) -> DeviceArray | None:
        """uint8 [columns, bytes]."""
        each = self.blocks.zero_bytes(self.in_features)
        return self._part(self.nbytes - self.columns * each, each, WeightFormat.INT8) if each else None

    @property
    def parts(self) -> tuple[DeviceArray, ...]:
        """Codes, scales and zero points where there are any."""
        return (self.codes, self.scales, self.zeros) if self.zeros else (self.codes, self.scales)

    @property
    def whole(self) -> DeviceArray:
        """All bytes, to be copied at once."""
        return DeviceArray(self.allocation, self.offset_bytes, (1, self.nbytes), WeightFormat.INT8)

    def _part(self, before_bytes: int, elements: int, element_format: WeightFormat) -> DeviceArray:
        return DeviceArray(self.allocation, self.offset_bytes + before_bytes, (self.columns, elements), element_format)


DeviceWeight = DeviceArray | DeviceBlocks


@dataclass(frozen=True)
class Span:
    """One piece of work on one track of the timeline; seconds since the trace began.

    `operator` and `what` say what it does in words that are the same in every layer ("host columns", "q_proj").
    """

    track: str
    name: str
    start_s: float
    duration_s: float
    operator: str = ""
    what: str = ""

    @property
    def stop_s(self) -> float:
        """Give the time when it was done."""
        return self.start_s + self.duration_s


class DeviceEvent(Protocol):
    """A point in a stream's work. `record` moves it; a `wait` binds to the last record before the wait."""

    def synchronize(self) -> None:
        """Block the host until everything before the last record is done."""


class DeviceStream(Protocol):
    """A queue of device work."""

    def copy_to_device(self, dst: DeviceArray, src: HostArray) -> None:
        """Queue a copy of `src` (pinned, as many bytes as `dst`) into `dst`.

        `src` is contiguous, or a matrix of contiguous rows that lie apart.
        """

    def copy_to_host(self, dst: HostArray, src: DeviceArray) -> None:
        """Queue a copy of `src` into `dst` (pinned, contiguous, as many bytes as `src`)."""

    def fetch(self, dst: DeviceArray, src: HostArray) -> None:
        """Queue a copy of `src` (pinned, contiguous, as many bytes as `dst`) that does not wait for copies elsewhere.

        A kernel reads the host's memory itself, where the device has kernels of its own: for the little that
        should not stand in line behind weights.
        """

    def multiply(
        self,
        x: DeviceArray,
        w: DeviceWeight,
        y: DeviceArray,
        layout: Layout,
        scratch: DeviceArray,
        activations: Activations = Activations.FLOAT,
    ) -> None:
        """Queue y[M, N] = x[M, K] @ W; `x` is as `Device.input_format` says, `y` is fp32, accumulation is fp32.

        `w` is [K, N] for `Layout.KN` and [N, K] for `Layout.NK`, as block-quantised weights always are. `scratch` has
        at least `scratch_bytes` of `offload/plan/scratch.py`, and is written to.
        Up to MAX_ROWS rows of fp32 x are multiplied as they are, or with block-quantised weights as `activations` says.
        Of more rows, x and block-quantised weights are rounded to 16 bits. (Rounding x to int8 first would bring it no
        closer to what the host gives: what differs in the last bits tips such roundings, and what comes of them.) Rows
        of fp32 x that would not fit fp16, too large or very small, are divided by `fp16_row_scales` before, and their y
        is multiplied by them.
        """

    def record(self, event: DeviceEvent) -> None:
        """Move `event` to this point of the stream."""

    def wait(self, event: DeviceEvent) -> None:
        """Let later work of this stream start only after `event`; one never recorded counts as done."""

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
    def hollow(self) -> bool:
        """True when no bytes are held, so that nothing needs to be loaded and no result means anything."""

    @property
    def fixed_bytes(self) -> dict[str, int]:
        """Memory this process already takes on the device and cannot give back: context, workspace."""

    def supports(self, weight_format: WeightFormat) -> str:
        """Empty when `multiply` takes this format here, else the reason why it does not."""

    def input_format(self, weight_format: WeightFormat) -> WeightFormat:
        """Name the format that x has to be stored in when it meets weights of this format.

        fp32, or where the device has no kernels of its own, the format of the weights.
        """

    def warm_up(self, linears: Sequence[LinearSpec], chunk_tokens: int) -> None:
        """Compile and run once whatever steps of up to `chunk_tokens` rows need for Linears like these.

        Afterwards `fixed_bytes` counts what libraries and kernels have loaded for that. Nothing else may be queued.
        """

    def memory(self) -> DeviceMemory: ...

    def allocate(self, nbytes: int) -> DeviceAllocation:
        """Reserve device memory. Raises OutOfDeviceMemoryError."""

    def free(self, allocation: DeviceAllocation) -> None:
        """Give device memory back. The host must have synchronised with all work that uses it."""

    def allocate_pinned(self, nbytes: int) -> npt.NDArray[np.uint8]:
        """Reserve `nbytes` of page-locked host memory, which lives as long as the array or a view of it.

        Raises OutOfDeviceMemoryError.
        """

    def pin(self, array: npt.NDArray[np.uint8]) -> None:
        """Page-lock memory of ours, which must stay where it is until `unpin`; no page of it may be pinned already.

        `array` is contiguous and no mapped file. Raises PinningError.
        """

    def unpin(self, array: npt.NDArray[np.uint8]) -> None:
        """Undo `pin` of the same array. The host must have synchronised with all work that uses it."""

    def stream(self, name: str) -> DeviceStream:
        """A new stream; `name` labels it in the timeline."""

    def event(self) -> DeviceEvent:
        """A new event, not recorded yet."""

    def start_trace(self) -> None:
        """Note the time of everything queued from here on; `Span.start_s` counts from this moment."""

    def trace_clock_s(self) -> float:
        """Now, on the clock of the spans of the trace that is on."""

    def take_trace(self) -> list[Span]:
        """Wait for all streams, end the trace and return its spans, one track for each stream."""

    def close(self) -> None:
        """Free everything. The device cannot be used afterwards."""
