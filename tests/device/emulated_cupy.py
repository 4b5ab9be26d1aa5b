"""The part of CuPy's low-level interface that CudaDevice uses, in host memory; without NVRTC, so without kernels.

Device pointers are host addresses. Every call is carried out at once, with cuBLAS's column-major rules, so
right results show that the arguments are right. Stream order is left to the simulated device.

Each thread has a current device: 0 from its first call of the runtime on, unless it sets another, and none for the
driver before that. Calls can be made to fail by `fault`; after an error that CUDA calls sticky, all of them do.
"""

import ctypes
import sys
import threading
from collections.abc import Callable
from mmap import PAGESIZE
from types import ModuleType, SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np

TYPES = {0: np.dtype(np.float32), 2: np.dtype(np.float16), 14: np.dtype(ml_dtypes.bfloat16)}


STICKY = {214, 700, 719}  # of those that tests use


class CUDARuntimeError(RuntimeError):
    def __init__(self, status: int) -> None:
        super().__init__(f"cudaError {status}")
        self.status = status


class CUDADriverError(CUDARuntimeError):
    pass


class CUBLASError(RuntimeError):
    def __init__(self, status: int) -> None:
        super().__init__(f"CUBLAS_STATUS {status}")
        self.status = status


class OutOfMemoryError(MemoryError):
    """Raised by CuPy's pools."""


class EmulatedCupy:
    """One GPU of `memory_bytes`; `calls` records (name, arguments) of what matters to tests."""

    def __init__(self, memory_bytes: int = 1 << 30, driver: int = 12_040, runtime: int = 12_090, devices: int = 1):
        self.memory_bytes = memory_bytes
        self.driver, self.built_for, self.devices = driver, runtime, devices
        self.blocks: dict[int, Any] = {}
        self.calls: list[tuple[str, tuple[Any, ...]]] = []
        self.current_stream: Any = None
        self.refused_types: set[int] = set()
        self.synchronize_error = 0
        self.register_error = 0
        self.registered: dict[int, range] = {}  # pages by address
        self.takes_pageable = False  # copies of memory that is not pinned, which are slow and wait for the host
        # As in cudaGetDeviceProperties.
        self.properties: dict[str, Any] = {
            "name": b"Emulated GPU",
            "major": 7,
            "minor": 5,
            "multiProcessorCount": 40,
            "unifiedAddressing": 1,
            "canMapHostMemory": 1,
        }
        self.asked_of: set[int] = set()  # ordinals, current ones too
        self._thread = threading.local()
        self.fault: Callable[[str], int] = lambda name: 0  # the status that a call is to fail with
        self.broken = 0  # the sticky error
        self.entered = 0  # how often anything was called
        self.pinned: dict[int, Any] = {}
        self._handles = iter(range(1, 1 << 30))

    def enter(self, name: str) -> None:
        """Every call that goes to CUDA begins here."""
        self.entered += 1
        if name == "launchKernel" and not hasattr(self._thread, "ordinal"):
            raise CUDADriverError(201)  # CUDA_ERROR_INVALID_CONTEXT
        self._thread.ordinal = getattr(self._thread, "ordinal", 0)
        self.asked_of.add(self._thread.ordinal)
        status = self.broken or self.fault(name)
        if status:
            self.broken = status if status in STICKY else self.broken
            raise CUDARuntimeError(status)

    def enter_cublas(self, name: str) -> None:
        """Every call that goes to cuBLAS, which does not say what is wrong with CUDA."""
        self.entered += 1
        if status := 14 if self.broken else self.fault(name):
            raise CUBLASError(status)

    # cupy.cuda.runtime

    def setDevice(self, ordinal: int) -> None:
        self._thread.ordinal = ordinal
        self.enter("setDevice")

    def getDeviceCount(self) -> int:
        if self.devices == 0:
            raise CUDARuntimeError(100)
        return self.devices

    def memGetInfo(self) -> tuple[int, int]:
        self.enter("memGetInfo")
        used = sum(len(block) for block in self.blocks.values())
        return self.memory_bytes - used, self.memory_bytes

    def malloc(self, nbytes: int) -> int:
        self.enter("malloc")
        assert nbytes > 0, "some versions of CUDA give no address then, and CuPy what the pointer was before"
        if nbytes > self.memGetInfo()[0]:
            raise CUDARuntimeError(2)
        block = (ctypes.c_uint8 * nbytes)()
        address = ctypes.addressof(block)
        ctypes.memset(address, 0xFF, nbytes)  # NaN, so that what nobody has written is seen
        self.blocks[address] = block
        return address

    def free(self, address: int) -> None:
        self.enter("free")
        del self.blocks[address]

    def hostAlloc(self, nbytes: int, flags: int) -> int:
        self.enter("hostAlloc")
        assert flags == 0
        assert nbytes > 0
        block = (ctypes.c_uint8 * nbytes)()
        address = ctypes.addressof(block)
        self.pinned[address] = block
        return address

    def freeHost(self, address: int) -> None:
        self.enter("freeHost")
        del self.pinned[address]

    def memcpyAsync(self, dst: int, src: int, nbytes: int, kind: int, stream: int) -> None:
        self.enter("memcpyAsync")
        on_device = [self._is_device(dst), self._is_device(src)]
        assert on_device == {1: [True, False], 2: [False, True]}[kind]
        assert self._is_pinned(src if kind == 1 else dst, nbytes) or self.takes_pageable
        assert stream != 0
        self.calls.append(("memcpyAsync", (dst, src, nbytes, kind, stream)))
        ctypes.memmove(dst, src, nbytes)

    def memcpy2DAsync(self, dst, dpitch, src, spitch, width, height, kind, stream):  # type: ignore[no-untyped-def]
        self.enter("memcpy2DAsync")
        assert min(dpitch, spitch) >= width
        assert self._is_device(dst, (height - 1) * dpitch + width)
        assert self._is_pinned(src, (height - 1) * spitch + width)
        assert kind == 1
        assert stream != 0
        self.calls.append(("memcpy2DAsync", (dst, dpitch, src, spitch, width, height, kind, stream)))
        for row in range(height):
            ctypes.memmove(dst + row * dpitch, src + row * spitch, width)

    def hostRegister(self, ptr: int, size: int, flags: int) -> None:
        self.enter("hostRegister")
        assert flags == 0
        pages = range(ptr // PAGESIZE, -(-(ptr + size) // PAGESIZE))
        if self.register_error:
            raise CUDARuntimeError(self.register_error)
        if any(pages.start < other.stop and other.start < pages.stop for other in self.registered.values()):
            raise CUDARuntimeError(712)
        self.registered[ptr] = pages

    def hostUnregister(self, ptr: int) -> None:
        self.enter("hostUnregister")
        del self.registered[ptr]

    def wait(self, handle: int = 0) -> None:
        self.enter("synchronize")
        if self.synchronize_error:
            raise CUDARuntimeError(self.synchronize_error)

    # cublas

    def gemmEx(self, h, ta, tb, m, n, k, alpha, a, at, lda, b, bt, ldb, beta, c, ct, ldc, compute, algo):  # type: ignore[no-untyped-def]
        self.enter_cublas("gemm")
        assert (at, ct, compute, algo) == (bt, 0, 68, -1)
        if at in self.refused_types:
            raise CUBLASError(15)
        self._gemm("gemmEx", h, ta, tb, m, n, k, alpha, a, at, lda, b, ldb, beta, c, ldc)

    def sgemm(self, h, ta, tb, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc):  # type: ignore[no-untyped-def]
        self.enter_cublas("gemm")
        self._gemm("sgemm", h, ta, tb, m, n, k, alpha, a, 0, lda, b, ldb, beta, c, ldc)

    def _gemm(self, name, h, ta, tb, m, n, k, alpha, a, kind, lda, b, ldb, beta, c, ldc):  # type: ignore[no-untyped-def]
        assert h != 0
        assert self.current_stream is not None
        assert (_float_at(alpha), _float_at(beta)) == (1.0, 0.0)
        self.calls.append((name, (ta, tb, m, n, k, a, lda, b, ldb, c, ldc)))
        left = self._column_major(a, TYPES[kind], *((k, m) if ta else (m, k)), lda)
        right = self._column_major(b, TYPES[kind], *((n, k) if tb else (k, n)), ldb)
        out = self._column_major(c, TYPES[0], m, n, ldc)
        left, right = (left.T if ta else left), (right.T if tb else right)
        with np.errstate(invalid="ignore", over="ignore"):
            out[:] = left.astype(np.float32) @ right.astype(np.float32)

    def _column_major(self, address: int, dtype: Any, rows: int, columns: int, leading: int) -> Any:
        assert leading >= rows
        nbytes = ((columns - 1) * leading + rows) * dtype.itemsize
        assert self._is_device(address, nbytes)
        data = np.frombuffer((ctypes.c_uint8 * nbytes).from_address(address), dtype)
        strides = (dtype.itemsize, leading * dtype.itemsize)
        return np.lib.stride_tricks.as_strided(data, (rows, columns), strides)

    def _is_device(self, address: int, nbytes: int = 1) -> bool:
        return any(start <= address and address + nbytes <= start + len(b) for start, b in self.blocks.items())

    def _is_pinned(self, address: int, nbytes: int) -> bool:
        """Say whether the host memory is of one block, from hostAlloc or registered."""
        blocks = [range(start, start + len(block)) for start, block in self.pinned.items()]
        blocks += [range(pages.start * PAGESIZE, pages.stop * PAGESIZE) for pages in self.registered.values()]
        return any(block.start <= address and address + nbytes <= block.stop for block in blocks)

    # The modules.

    def install(self, monkeypatch: Any) -> None:
        """Put the emulation in the place of cupy, as if no thread had ever called CUDA."""
        monkeypatch.setattr("offload.devices.cuda.calls._thread", threading.local())
        emulated = self

        class Stream:
            def __init__(self, non_blocking: bool) -> None:
                assert non_blocking
                self.ptr = 0
                emulated.enter("streamCreate")
                self.ptr = next(emulated._handles)

            def __del__(self) -> None:
                if self.ptr and not sys.is_finalizing():
                    emulated.enter("streamDestroy")

            def __enter__(self) -> None:
                emulated.enter("getDevice")
                self.outer, emulated.current_stream = emulated.current_stream, self

            def __exit__(self, *error: object) -> None:
                emulated.current_stream = self.outer

        class Event:
            def __init__(self, disable_timing: bool = False) -> None:
                self.ptr = 0
                emulated.enter("eventCreate")
                self.timed = not disable_timing
                self.ptr = next(emulated._handles)

            def __del__(self) -> None:
                if self.ptr and not sys.is_finalizing():
                    emulated.enter("eventDestroy")

            def record(self, stream: Stream) -> None:
                emulated.enter("eventRecord")
                assert isinstance(stream, Stream)

            def synchronize(self) -> None:
                emulated.wait()

        def elapsed_ms(start: Event, end: Event) -> float:
            assert start.timed
            assert end.timed
            return float(end.ptr - start.ptr)

        def record(name: str) -> Any:
            def call(*arguments: Any) -> None:
                (self.enter_cublas if name == "destroy" else self.enter)(name)
                self.calls.append((name, arguments))

            return call

        runtime = ModuleType("cupy.cuda.runtime")
        runtime.__dict__.update(
            CUDARuntimeError=CUDARuntimeError,
            driverGetVersion=lambda: self.driver,
            runtimeGetVersion=lambda: self.built_for,
            getDeviceCount=self.getDeviceCount,
            deviceGetPCIBusId=lambda ordinal: self.asked_of.add(ordinal) or "0000:00:00.0",
            getDeviceProperties=lambda ordinal: self.asked_of.add(ordinal) or self.properties,
            setDevice=self.setDevice,
            memGetInfo=self.memGetInfo,
            malloc=self.malloc,
            free=self.free,
            hostAlloc=self.hostAlloc,
            freeHost=self.freeHost,
            memcpyAsync=self.memcpyAsync,
            memcpy2DAsync=self.memcpy2DAsync,
            hostRegister=self.hostRegister,
            hostUnregister=self.hostUnregister,
            eventRecord=record("eventRecord"),
            streamWaitEvent=record("streamWaitEvent"),
            eventSynchronize=self.wait,
            streamSynchronize=self.wait,
            deviceSynchronize=self.wait,
        )
        driver = ModuleType("cupy.cuda.driver")
        driver.__dict__.update(CUDADriverError=CUDADriverError)
        cuda = ModuleType("cupy.cuda")
        cuda.__dict__.update(
            runtime=runtime,
            driver=driver,
            Stream=Stream,
            Event=Event,
            get_elapsed_time=elapsed_ms,
            memory=SimpleNamespace(OutOfMemoryError=OutOfMemoryError),
        )
        cupy = ModuleType("cupy")
        cupy.__dict__.update(cuda=cuda)
        cublas = ModuleType("cublas")
        cublas.__dict__.update(
            CUBLASError=CUBLASError,
            create=lambda: next(self._handles),
            destroy=record("destroy"),
            gemmEx=self.gemmEx,
            sgemm=self.sgemm,
        )
        libs = ModuleType("cupy_backends.cuda.libs")
        libs.__dict__.update(cublas=cublas)
        modules = {
            "cupy": cupy,
            "cupy.cuda": cuda,
            "cupy.cuda.runtime": runtime,
            "cupy_backends.cuda.libs": libs,
        }
        for name, module in modules.items():
            monkeypatch.setitem(sys.modules, name, module)


def _float_at(address: int) -> float:
    return ctypes.c_float.from_address(address).value
