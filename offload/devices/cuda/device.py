"""A CUDA GPU through CuPy's low-level calls.

CuPy's pools are not used: device and pinned blocks have exactly the size that was asked for. Arguments of the
low-level calls are positional integers, and pointers are addresses.
"""

import ctypes
import weakref
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt

from offload.devices.base import DeviceAllocation, DeviceMemory, Span
from offload.devices.cuda.calls import CudaCalls, use
from offload.devices.cuda.compiler import BoundLaunch, CudaCompiler
from offload.devices.cuda.gemm_probe import gemm_is_exact, kernels_are_exact
from offload.devices.cuda.kernels.launch import Launch
from offload.devices.cuda.libraries import check_driver, import_compiler, import_cublas, import_cupy, one_line
from offload.devices.cuda.own_kernels import CudaKernels
from offload.devices.cuda.stream import CudaAllocation, CudaEvent, CudaStream
from offload.devices.cuda.vram_meter import VramMeter
from offload.devices.cuda.warm_up import run_once
from offload.errors import (
    PINNED_RAM,
    DeviceLostError,
    DeviceUnavailableError,
    OutOfDeviceMemoryError,
    PinningError,
)
from offload.spec.linear import LinearSpec, WeightFormat
from offload.spec.units import counted

_context_bytes: dict[str, int] = {}  # by PCI bus id: memory that contexts of this process take


class CudaDevice:
    """See Device. Raises DeviceUnavailableError, with one line that says what is missing."""

    simulated = False
    hollow = False

    def __init__(self, ordinal: int = 0) -> None:
        self._cupy, self.runtime = import_cupy()
        check_driver(self.runtime, ordinal)
        self.cublas = import_cublas(self.runtime)
        pci_bus_id = self.runtime.deviceGetPCIBusId(ordinal)  # needs no context
        self.vram = VramMeter(pci_bus_id, self._used_bytes)
        try:
            use(self.runtime, ordinal)
            free_bytes, _ = self.runtime.memGetInfo()  # creates the context, if that did not
            self._properties = self.runtime.getDeviceProperties(ordinal)
            self.name: str = self._properties["name"].decode()
            self._calls = CudaCalls(ordinal, self.name, self._cupy, self.cublas)
            self.call = self._calls.call
            # A process has one context for each GPU, so only its first device sees what that takes.
            context_bytes = _context_bytes.setdefault(pci_bus_id, self.vram.used_bytes())
        except (self.runtime.CUDARuntimeError, DeviceLostError, OutOfDeviceMemoryError) as error:
            self.vram.close()
            raise DeviceUnavailableError(f"CUDA device {ordinal} does not start: {error}") from None

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
            raise DeviceUnavailableError(f"cuBLAS does not start: {error}") from None
        self.kernels: CudaKernels | None = None
        self.bf16_as_fp32 = False  # many rows: since no GEMM takes bf16, or none that is fast
        try:
            self._refused = {form: self._try_gemm(form) for form in WeightFormat if form.is_float}
            # Before Ampere cuBLAS takes bf16 too, but without tensor cores: slower than fp32.
            self.bf16_as_fp32 = bool(self._refused[WeightFormat.BF16]) or self._properties["major"] < 8
            self.without_kernels = self._try_kernels()  # why; "" where they work
            workspace_bytes = free_bytes - self.memory().free_bytes
        except (*self._calls.errors, OutOfDeviceMemoryError, DeviceLostError) as error:
            self.close()
            raise DeviceUnavailableError(f"{self.name} fails a trial multiplication: {one_line(error)}") from None
        self.fixed_bytes = {"context": context_bytes, "workspace": max(0, workspace_bytes)}
        self._calls.opened = True

    def supports(self, weight_format: WeightFormat) -> str:
        """See Device. GEMMs and kernels were tried when the device was opened."""
        if not weight_format.is_float:
            if self.without_kernels:
                return f"{weight_format} takes kernels of our own: {self.without_kernels}"
            return self._refused[WeightFormat.FP16]  # which many rows are multiplied in
        if weight_format is WeightFormat.BF16 and self.kernels is not None:
            return self._refused[WeightFormat.FP32]  # likewise, if need be
        return self._refused[weight_format]

    def input_format(self, weight_format: WeightFormat) -> WeightFormat:
        """See Device."""
        return weight_format if self.kernels is None else WeightFormat.FP32

    @property
    def reads_host_memory(self) -> bool:
        """Tell whether kernels can read pinned memory at the host's addresses, as in every 64-bit process on Linux."""
        return bool(self._properties["unifiedAddressing"] and self._properties["canMapHostMemory"])

    def warm_up(self, linears: Sequence[LinearSpec], chunk_tokens: int) -> None:
        """See Device. What kernels take is counted as workspace."""
        before_bytes = self.memory().free_bytes
        run_once(self, linears, chunk_tokens)
        taken_bytes = max(0, before_bytes - self.memory().free_bytes)
        self.fixed_bytes = self.fixed_bytes | {"workspace": self.fixed_bytes["workspace"] + taken_bytes}

    def memory(self) -> DeviceMemory:
        """See Device."""
        free_bytes, total_bytes = self.call(self.runtime.memGetInfo)
        return DeviceMemory(free_bytes, total_bytes)

    def allocate(self, nbytes: int) -> CudaAllocation:
        """See Device. Raises OverBudgetError for what would lift this process above `vram.limit_bytes`."""
        self.vram.check(nbytes)
        if nbytes == 0:  # cudaMalloc may then leave the pointer as it was, and CuPy would give us that
            return CudaAllocation(0, 0)
        allocation = CudaAllocation(self.call(self.runtime.malloc, nbytes, asked_bytes=nbytes), nbytes)
        self._allocations[allocation.address] = allocation
        return allocation

    def free(self, allocation: DeviceAllocation) -> None:
        """See Device."""
        assert isinstance(allocation, CudaAllocation)
        if allocation.nbytes == 0:
            return
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
            raise PinningError(
                f"{counted(array.nbytes, 'byte')} of RAM cannot be page-locked: {one_line(error)}"
            ) from None

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

    def prepare(self, launches: Sequence[Launch]) -> None:
        """Compile and load kernels of our own. Raises DeviceUnavailableError."""
        self.call(self._compiler.prepare, launches)

    def bind(self, launch: Launch, arguments: Sequence[Any], stream: int) -> BoundLaunch:
        """A launch of a kernel of our own, for `launch`. Raises DeviceUnavailableError."""
        bound: BoundLaunch = self.call(self._compiler.bind, launch, arguments, stream)
        return bound

    def launch(self, bound: BoundLaunch) -> None:
        """Queue a kernel of our own."""
        self.call(self._compiler.launch, bound)

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

    def _try_kernels(self) -> str:
        """Load our own kernels unless they do not work here; then say why in one line."""
        properties = self._properties
        try:
            self._compiler = CudaCompiler(*import_compiler(), 10 * properties["major"] + properties["minor"])
            self._calls.handles.append(self._compiler)
            self.kernels = CudaKernels(partial(self.call, self._compiler), properties["multiProcessorCount"])
            if kernels_are_exact(self):
                return ""
            why = f"our own kernels give wrong values on {self.name}"
        except (DeviceUnavailableError, *self._calls.errors) as error:
            why = one_line(error)
        self.kernels = None
        return why
