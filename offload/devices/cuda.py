"""A CUDA GPU through CuPy's low-level calls.

CuPy's pools are not used: device and pinned blocks have exactly the size that was asked for. Arguments of the
low-level calls are positional integers, and pointers are addresses.
"""

import ctypes
import functools
import weakref
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt

from offload.devices.base import DeviceAllocation, DeviceArray, DeviceEvent, DeviceMemory, HostArray, Span
from offload.devices.cuda_calls import CudaCalls
from offload.devices.cuda_compiler import CudaCompiler
from offload.devices.cuda_kernels import BlockWeight, CudaKernels, FloatRows, Int8Rows, Weight
from offload.devices.cuda_libraries import check_driver, import_compiler, import_cublas, import_cupy, one_line
from offload.devices.gemm_probe import gemm_is_exact
from offload.devices.vram_meter import VramMeter
from offload.errors import (
    PINNED_RAM,
    DeviceLostError,
    DeviceUnavailableError,
    OutOfDeviceMemoryError,
    PinningError,
)
from offload.specs import ColumnRange, Layout, LinearSpec, WeightFormat

_TO_DEVICE, _TO_HOST = 1, 2  # cudaMemcpyKind
_CUDA_R_32F = 0
_OPERAND_TYPES = {WeightFormat.FP16: 2, WeightFormat.BF16: 14}  # CUDA_R_16F, CUDA_R_16BF
_COMPUTE_32F = 68
_DEFAULT_ALGORITHM = -1  # the tensor-op values (99 and above) would allow fp16 reductions

_context_bytes: dict[str, int] = {}  # by PCI bus id: memory that contexts of this process take


@dataclass(frozen=True)
class CudaAllocation:
    """A block from cudaMalloc."""

    address: int
    nbytes: int


class CudaEvent:
    """See DeviceEvent."""

    def __init__(self, device: "CudaDevice", event: Any) -> None:
        self._device = device
        self.address = event.ptr

    def synchronize(self) -> None:
        """See DeviceEvent. Raises OutOfDeviceMemoryError for work that found no memory."""
        self._device.call(self._device.runtime.eventSynchronize, self.address)


class CudaStream:
    """See DeviceStream: one non-blocking stream, which never waits for the null stream."""

    def __init__(self, device: "CudaDevice", name: str, stream: Any) -> None:
        self._device = device
        self._name = name
        self._stream = stream
        self._address = stream.ptr
        runtime, cublas = device.runtime, device.cublas
        self._memcpy, self._memcpy_2d = runtime.memcpyAsync, runtime.memcpy2DAsync
        self._event_record = runtime.eventRecord
        self._wait_event = runtime.streamWaitEvent
        self._gemm_ex = cublas.gemmEx
        self._sgemm = cublas.sgemm

    def copy_to_device(self, dst: DeviceArray, src: HostArray) -> None:
        """See DeviceStream."""
        assert src.nbytes == dst.nbytes
        began = self._device.tick(self._stream)
        call = self._device.call
        if src.flags.c_contiguous:
            call(self._memcpy, _address(dst), src.ctypes.data, dst.nbytes, _TO_DEVICE, self._address)
        else:
            assert (src.shape, src.strides[1]) == (dst.shape, src.itemsize)
            row = dst.nbytes // len(src)
            source = (src.ctypes.data, src.strides[0])
            call(self._memcpy_2d, _address(dst), row, *source, row, len(src), _TO_DEVICE, self._address)
        if began is not None:
            self._device.tock(self._stream, began, self._name, f"copy-in {dst.nbytes} B")

    def copy_to_host(self, dst: HostArray, src: DeviceArray) -> None:
        """See DeviceStream."""
        assert dst.nbytes == src.nbytes
        assert dst.flags.c_contiguous
        began = self._device.tick(self._stream)
        self._device.call(self._memcpy, dst.ctypes.data, _address(src), src.nbytes, _TO_HOST, self._address)
        if began is not None:
            self._device.tock(self._stream, began, self._name, f"copy-out {src.nbytes} B")

    def gemm(self, x: DeviceArray, w: DeviceArray, y: DeviceArray, layout: Layout) -> None:
        """See DeviceStream."""
        device = self._device
        rows, inner = x.shape
        columns = y.shape[1]
        assert w.shape == ((inner, columns) if layout is Layout.KN else (columns, inner))
        assert (x.format, y.format, y.shape[0]) == (w.format, WeightFormat.FP32, rows)
        # cuBLAS is column-major and so sees every row-major matrix transposed: y.T = W.T @ x.T.
        # W stored as [K, N] is that W.T[N, K] already, and W stored as [N, K] has to be transposed.
        transpose, leading = (0, columns) if layout is Layout.KN else (1, inner)
        size = (device.cublas_handle, transpose, 0, columns, rows, inner)
        one, zero = device.one_address, device.zero_address
        began = device.tick(self._stream)
        if w.format is WeightFormat.FP32:  # fp32 throughout, never TF32
            x_and_w = (one, _address(w), leading, _address(x), inner)
            device.call(self._multiply, self._sgemm, *size, *x_and_w, zero, _address(y), columns)
        else:
            kind = _OPERAND_TYPES[w.format]
            device.call(
                self._multiply,
                self._gemm_ex,
                *size,
                *(one, _address(w), kind, leading, _address(x), kind, inner),
                *(zero, _address(y), _CUDA_R_32F, columns, _COMPUTE_32F, _DEFAULT_ALGORITHM),
            )
        if began is not None:
            device.tock(self._stream, began, self._name, f"gemm {rows}x{inner}x{columns}")

    def multiply_rows(
        self,
        x: DeviceArray | Int8Rows,
        w: Weight,
        y: DeviceArray,
        scratch: DeviceArray | None = None,
    ) -> None:
        """Queue y[M, N] = x[M, K] @ W for 1 to 8 rows by our own kernels; x is fp32 or quantised, y fp32.

        `scratch` has `CudaDevice.kernels.scratch_bytes(M, w)` bytes. Raises DeviceUnavailableError when the kernel
        cannot be compiled or loaded.
        """
        rows = x if isinstance(x, Int8Rows) else _float_rows(x)
        assert (y.format, y.shape) == (WeightFormat.FP32, (rows.rows, w.columns))
        began = self._device.tick(self._stream)
        scratch_address = _address(scratch) if scratch else 0
        self._device.kernels.multiply(rows, w, _address(y), self._address, scratch=scratch_address)
        if began is not None:
            self._device.tock(self._stream, began, self._name, f"multiply {rows.rows}x{w.inner}x{w.columns}")

    def quantise_rows(self, x: DeviceArray, into: Int8Rows) -> None:
        """Queue the quantisation of fp32 x[M, K] for `multiply_rows`."""
        self._device.kernels.quantise(_float_rows(x), into, self._address)

    def dequantise(self, w: BlockWeight, columns: ColumnRange, out: DeviceArray) -> None:
        """Queue some columns of W into a panel [n, K] of fp16 or fp32, for `gemm` with many rows."""
        assert out.shape == (len(columns), w.inner)
        self._device.kernels.dequantise(w, columns.start, columns.stop, _address(out), out.format, self._address)

    def record(self, event: DeviceEvent) -> None:
        """See DeviceStream."""
        assert isinstance(event, CudaEvent)
        self._device.call(self._event_record, event.address, self._address)

    def wait(self, event: DeviceEvent) -> None:
        """See DeviceStream."""
        assert isinstance(event, CudaEvent)
        self._device.call(self._wait_event, self._address, event.address)

    def synchronize(self) -> None:
        """See DeviceStream. Raises OutOfDeviceMemoryError for work that found no memory."""
        self._device.call(self._device.runtime.streamSynchronize, self._address)

    def _multiply(self, function: Any, *arguments: Any) -> None:
        with self._stream:  # CuPy binds the cuBLAS handle to the current stream at every call
            function(*arguments)


class CudaDevice:
    """See Device. Raises DeviceUnavailableError, with one line that says what is missing."""

    simulated = False
    hollow = False

    def __init__(self, ordinal: int = 0) -> None:
        self._cupy, self.runtime = import_cupy()
        check_driver(self.runtime, ordinal)
        self.cublas = import_cublas()
        pci_bus_id = self.runtime.deviceGetPCIBusId(ordinal)  # needs no context
        self.vram = VramMeter(pci_bus_id, self._used_bytes)
        try:
            self._cupy.cuda.Device(ordinal).use()
            free_bytes, _ = self.runtime.memGetInfo()  # creates the context, if that did not
            self._properties = self.runtime.getDeviceProperties(ordinal)
            self.name: str = self._properties["name"].decode()
            self._calls = CudaCalls(self.name, self._cupy, self.cublas)
            self.call = self._calls.call
            # A process has one context for each GPU, so only its first device sees what that takes.
            context_bytes = _context_bytes.setdefault(pci_bus_id, self.vram.used_bytes())
        except (self.runtime.CUDARuntimeError, DeviceLostError, OutOfDeviceMemoryError) as error:
            self.vram.close()
            raise DeviceUnavailableError(f"CUDA device {ordinal} does not start: {error}") from error

        self._allocations: dict[int, CudaAllocation] = {}
        self._trace: list[tuple[str, str, Any, Any]] | None = None
        self._trace_base: Any = None
        self._trace_began_s = 0.0
        # cuBLAS reads the scalars of a GEMM from host memory, so they have to outlive it.
        self._scalars = np.array([1.0, 0.0], np.float32)
        self.one_address = self._scalars.ctypes.data
        self.zero_address = self.one_address + self._scalars.itemsize
        try:
            self.cublas_handle = self.cublas.create()
        except self.cublas.CUBLASError as error:
            self.vram.close()
            raise DeviceUnavailableError(f"cuBLAS does not start: {error}") from error
        try:
            self._unsupported = {form: self._try_gemm(form) for form in WeightFormat if form.is_float}
            workspace_bytes = free_bytes - self.memory().free_bytes
        except (*self._calls.errors, OutOfDeviceMemoryError, DeviceLostError) as error:
            self.close()
            raise DeviceUnavailableError(f"{self.name} fails a trial multiplication: {one_line(error)}") from error
        self.fixed_bytes = {"context": context_bytes, "workspace": max(0, workspace_bytes)}
        self._calls.opened = True

    def supports(self, weight_format: WeightFormat) -> str:
        """See Device. The float formats were tried when the device was opened."""
        return self._unsupported.get(weight_format, f"no device kernel multiplies {weight_format} yet")

    def warm_up(self, linears: Sequence[LinearSpec], chunk_tokens: int) -> None:
        """See Device. Every GEMM was tried when the device was opened."""

    def memory(self) -> DeviceMemory:
        """See Device."""
        free_bytes, total_bytes = self.call(self.runtime.memGetInfo)
        return DeviceMemory(free_bytes, total_bytes)

    def allocate(self, nbytes: int) -> CudaAllocation:
        """See Device. Raises OverBudgetError for what would lift this process above `vram.limit_bytes`."""
        self.vram.check(nbytes)
        allocation = CudaAllocation(self.call(self.runtime.malloc, nbytes, asked_bytes=nbytes), nbytes)
        self._allocations[allocation.address] = allocation
        return allocation

    def free(self, allocation: DeviceAllocation) -> None:
        """See Device."""
        assert isinstance(allocation, CudaAllocation)
        del self._allocations[allocation.address]
        self._calls.give_back(self.runtime.free, allocation.address)

    def allocate_pinned(self, nbytes: int) -> npt.NDArray[np.uint8]:
        """See Device."""
        address = self.call(self.runtime.hostAlloc, nbytes, 0, asked_bytes=nbytes, where=PINNED_RAM)
        array = np.frombuffer(memoryview((ctypes.c_uint8 * nbytes).from_address(address)), np.uint8)
        # Views have this array as their base, so it is gone when the last of them is.
        weakref.finalize(array, self._calls.give_back, self.runtime.freeHost, address).atexit = False
        return array

    def pin(self, array: npt.NDArray[np.uint8]) -> None:
        """See Device."""
        try:
            self.call(
                self.runtime.hostRegister,
                array.ctypes.data,
                array.nbytes,
                0,
                asked_bytes=array.nbytes,
                where=PINNED_RAM,
            )
        except (self.runtime.CUDARuntimeError, OutOfDeviceMemoryError) as error:
            raise PinningError(f"{array.nbytes} bytes of RAM cannot be page-locked: {one_line(error)}") from error

    def unpin(self, array: npt.NDArray[np.uint8]) -> None:
        """See Device."""
        self._calls.give_back(self.runtime.hostUnregister, array.ctypes.data)

    def stream(self, name: str) -> CudaStream:
        """See Device."""
        return CudaStream(self, name, self._new_stream())

    def event(self) -> CudaEvent:
        """See Device."""
        event = self.call(lambda: self._cupy.cuda.Event(disable_timing=True))
        self._calls.handles.append(event)
        return CudaEvent(self, event)

    @functools.cached_property
    def kernels(self) -> CudaKernels:
        """Our own kernels, compiled when first launched. Raises DeviceUnavailableError without NVRTC."""
        properties = self._properties
        capability = 10 * properties["major"] + properties["minor"]
        return CudaKernels(CudaCompiler(*import_compiler(), capability), properties["multiProcessorCount"])

    def start_trace(self) -> None:
        """See Device. A device that is lost here shows it at the next operation."""
        self._trace = []
        with suppress(DeviceLostError):
            self.call(self.runtime.deviceSynchronize)
            self._trace_base = self.tick(self._new_stream())
            self.call(self._trace_base.synchronize)
        self._trace_began_s = perf_counter()

    def trace_clock_s(self) -> float:
        """See Device. The host's clock, which runs as the GPU's does."""
        return perf_counter() - self._trace_began_s

    def take_trace(self) -> list[Span]:
        """See Device."""
        try:
            self.call(self.runtime.deviceSynchronize)
        except DeviceLostError:
            return []
        traced, self._trace = self._trace or [], None
        return [
            Span(track, name, self._elapsed_s(self._trace_base, began), self._elapsed_s(began, ended))
            for track, name, began, ended in traced
        ]

    def close(self) -> None:
        """See Device. The CUDA context itself lives as long as the process."""
        self._calls.give_back(self.runtime.deviceSynchronize)
        for allocation in list(self._allocations.values()):
            self.free(allocation)
        if self.cublas_handle:
            self._calls.give_back(self.cublas.destroy, self.cublas_handle)
            self.cublas_handle = 0
        self.vram.close()
        if not self._calls.lost_why:
            self._calls.handles.clear()

    # What streams and events ask of their device.

    def tick(self, stream: Any) -> Any:
        """While a trace is on, an event that holds the time on `stream`; else None."""
        if self._trace is None:
            return None
        event = self.call(self._cupy.cuda.Event)
        self.call(event.record, stream)
        return event

    def tock(self, stream: Any, began: Any, track: str, name: str) -> None:
        """Add what `stream` did since `began` to the trace."""
        if self._trace is not None:
            self._trace.append((track, name, began, self.tick(stream)))

    def _new_stream(self) -> Any:
        stream = self.call(lambda: self._cupy.cuda.Stream(non_blocking=True))
        self._calls.handles.append(stream)
        return stream

    def _used_bytes(self) -> int:
        memory = self.memory()
        return memory.total_bytes - memory.free_bytes

    def _elapsed_s(self, began: Any, ended: Any) -> float:
        elapsed_ms: float = self.call(self._cupy.cuda.get_elapsed_time, began, ended)
        return elapsed_ms * 1e-3

    def _try_gemm(self, weight_format: WeightFormat) -> str:
        """Why this GPU cannot multiply a format, or empty. Also loads cuBLAS's workspace and kernels."""
        try:
            exact = gemm_is_exact(self, weight_format)
        except self.cublas.CUBLASError as error:
            return f"cuBLAS refuses {weight_format} on {self.name}: {error}"
        return "" if exact else f"cuBLAS gives wrong values for {weight_format} on {self.name}"


def _address(array: DeviceArray) -> int:
    assert isinstance(array.allocation, CudaAllocation)
    return array.allocation.address + array.offset_bytes


def _float_rows(x: DeviceArray) -> FloatRows:
    assert x.format is WeightFormat.FP32
    return FloatRows(_address(x), *x.shape)
