"""Streams, events and allocations of a CUDA GPU. Pointers are addresses."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from offload.devices.base import DeviceArray, DeviceBlocks, DeviceEvent, DeviceWeight
from offload.devices.cuda.compiler import BoundLaunch
from offload.devices.cuda.multiply import CudaMultiplication, Gemm, Scratch
from offload.devices.cuda.own_kernels import BlockWeight, FloatRows, FloatWeight, ReadyLaunch, Weight
from offload.plan.scratch import MAX_ROWS
from offload.spec.arrays import HostArray
from offload.spec.linear import Activations, Layout, WeightFormat

if TYPE_CHECKING:
    from offload.devices.cuda.device import CudaDevice

_TO_DEVICE, _TO_HOST = 1, 2  # cudaMemcpyKind
_CUDA_R_32F = 0
_OPERAND_TYPES = {WeightFormat.FP16: 2, WeightFormat.BF16: 14}  # CUDA_R_16F, CUDA_R_16BF
_COMPUTE_32F = 68
_MOST_BOUND = 8192  # launches and groups of them that are kept
_DEFAULT_ALGORITHM = -1  # the tensor-op values (99 and above) would allow fp16 reductions


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
        self._kernels = device.kernels
        self._by_kernels: CudaMultiplication | None = None
        self._bound: dict[Any, list[BoundLaunch]] = {}
        if self._kernels is not None:
            self._by_kernels = CudaMultiplication(self._kernels, self._gemm, self._address, device.bf16_as_fp32)

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

    def fetch(self, dst: DeviceArray, src: HostArray) -> None:
        """See DeviceStream; `src` is from `allocate_pinned`.

        Kernels read such memory at the address that the host has for it, whatever it was allocated with (CUDA Runtime
        API, "Unified Addressing", automatic mapping of host allocated memory). Of memory that was only registered, that
        holds where cudaDevAttrCanUseHostPointerForRegisteredMem does.
        """
        if self._kernels is None or not self._device.reads_host_memory:
            self.copy_to_device(dst, src)
            return
        assert src.nbytes == dst.nbytes
        assert src.flags.c_contiguous
        began = self._device.tick(self._stream)
        key = (src.ctypes.data, _address(dst), dst.nbytes)
        if key not in self._bound:
            self._bind(key, [self._kernels.fetching(*key)])
        self._device.launch(self._bound[key][0])
        if began is not None:
            self._device.tock(self._stream, began, self._name, f"copy-in {dst.nbytes} B")

    def multiply(
        self,
        x: DeviceArray,
        w: DeviceWeight,
        y: DeviceArray,
        layout: Layout,
        scratch: DeviceArray,
        activations: Activations = Activations.FLOAT,
    ) -> None:
        """See DeviceStream. Raises ValueError where `scratch` does not suffice."""
        if isinstance(w, DeviceArray) and w.format is x.format:
            self.gemm(x, w, y, layout)
            return
        assert self._by_kernels is not None
        began = self._device.tick(self._stream)
        if x.shape[0] <= MAX_ROWS:
            for launch in self._few_rows(x, w, y, layout, scratch, activations):
                self._device.launch(launch)
        else:
            self._by_kernels.many_rows(*_operands(x, w, y, layout, scratch))
        if began is not None:
            self._device.tock(self._stream, began, self._name, f"gemm {x.shape[0]}x{x.shape[1]}x{y.shape[1]}")

    def _few_rows(
        self,
        x: DeviceArray,
        w: DeviceWeight,
        y: DeviceArray,
        layout: Layout,
        scratch: DeviceArray,
        activations: Activations,
    ) -> list[BoundLaunch]:
        """Launches, which are bound once: every step asks for the same ones again, and waits for the first."""
        form = (w.format, w.shape) if isinstance(w, DeviceArray) else (w.blocks, w.columns)
        places = (_address(x), _address(w), _address(y), _address(scratch), scratch.nbytes)
        key = (places, x.shape, y.shape, form, layout, activations)
        if key not in self._bound:
            assert self._by_kernels is not None
            ready = self._by_kernels.few_rows(*_operands(x, w, y, layout, scratch), _takes_int8(w, activations))
            self._bind(key, ready)
        return self._bound[key]

    def _bind(self, key: Any, ready: Sequence[ReadyLaunch]) -> None:
        if len(self._bound) == _MOST_BOUND:
            self._bound.clear()
        self._bound[key] = [self._device.bind(launch, arguments, self._address) for launch, arguments in ready]

    def gemm(self, x: DeviceArray, w: DeviceArray, y: DeviceArray, layout: Layout) -> None:
        """Queue y = x @ W by cuBLAS alone, where x and W are of one format."""
        rows, inner = x.shape
        columns = y.shape[1]
        assert w.shape == ((inner, columns) if layout is Layout.KN else (columns, inner))
        assert (x.format, y.format, y.shape[0]) == (w.format, WeightFormat.FP32, rows)
        began = self._device.tick(self._stream)
        self._gemm(Gemm(_address(x), _address(w), _address(y), w.format, layout, rows, columns, inner, columns))
        if began is not None:
            self._device.tock(self._stream, began, self._name, f"gemm {rows}x{inner}x{columns}")

    def prepare(self, w: DeviceWeight, layout: Layout, activations: Activations) -> None:
        """Compile the kernels of `multiply` for few rows together. Raises DeviceUnavailableError."""
        if self._kernels is not None and not (isinstance(w, DeviceArray) and w.format is WeightFormat.FP32):
            launches = self._kernels.multiplications(_weight(w, layout), _takes_int8(w, activations))
            self._device.prepare(launches)

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

    def _gemm(self, gemm: Gemm) -> None:
        device = self._device
        # cuBLAS is column-major and so sees every row-major matrix transposed: y.T = W.T @ x.T.
        # W stored as [K, N] is that W.T[N, K] already, and W stored as [N, K] has to be transposed.
        transpose, leading = (0, gemm.columns) if gemm.layout is Layout.KN else (1, gemm.inner)
        size = (device.cublas_handle, transpose, 0, gemm.columns, gemm.rows, gemm.inner)
        one, zero = device.one_address, device.zero_address
        if gemm.format is WeightFormat.FP32:  # fp32 throughout, never TF32
            x_and_w = (one, gemm.w, leading, gemm.x, gemm.inner)
            device.call(self._on_stream, self._sgemm, *size, *x_and_w, zero, gemm.y, gemm.y_pitch)
        else:
            kind = _OPERAND_TYPES[gemm.format]
            device.call(
                self._on_stream,
                self._gemm_ex,
                *size,
                *(one, gemm.w, kind, leading, gemm.x, kind, gemm.inner),
                *(zero, gemm.y, _CUDA_R_32F, gemm.y_pitch, _COMPUTE_32F, _DEFAULT_ALGORITHM),
            )

    def _on_stream(self, function: Any, *arguments: Any) -> None:
        with self._stream:  # CuPy binds the cuBLAS handle to the current stream at every call
            function(*arguments)


def _address(array: DeviceArray | DeviceBlocks) -> int:
    assert isinstance(array.allocation, CudaAllocation)
    return array.allocation.address + array.offset_bytes


def _takes_int8(w: DeviceWeight, activations: Activations) -> bool:
    """Tell whether x is rounded to int8 for this weight."""
    return isinstance(w, DeviceBlocks) and activations is Activations.INT8


def _operands(
    x: DeviceArray, w: DeviceWeight, y: DeviceArray, layout: Layout, scratch: DeviceArray
) -> tuple[FloatRows, Weight, int, Scratch]:
    operand = _weight(w, layout)
    assert (x.format, operand.inner) == (WeightFormat.FP32, x.shape[1])
    assert (y.format, y.shape) == (WeightFormat.FP32, (x.shape[0], operand.columns))
    return FloatRows(_address(x), *x.shape), operand, _address(y), Scratch(_address(scratch), scratch.nbytes)


def _weight(w: DeviceWeight, layout: Layout) -> Weight:
    if isinstance(w, DeviceArray):
        columns, inner = w.shape if layout is Layout.NK else w.shape[::-1]
        return FloatWeight(_address(w), w.format, layout, columns, inner)
    zeros = w.zeros
    return BlockWeight(
        _address(w.codes),
        _address(w.scales),
        _address(zeros) if zeros is not None else 0,
        w.blocks,
        w.columns,
        w.in_features,
    )
