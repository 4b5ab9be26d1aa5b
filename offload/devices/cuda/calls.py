"""Calls of CUDA and cuBLAS whose errors say what they mean for a run; a lost device is not called again."""

import os
import threading
from contextlib import suppress
from typing import Any, NoReturn

from offload.devices.cuda.errors import CUBLAS_FAILED, CUBLAS_NO_MEMORY, LOST, NO_MEMORY
from offload.errors import DEVICE_MEMORY, PINNED_RAM, DeviceLostError, OutOfDeviceMemoryError

_lost: list["CudaCalls"] = []  # kept, since CuPy's destructors of their handles complain of a lost context


_thread = threading.local()  # `ordinal` of the device that CUDA calls of a thread go to, once we have said so


def use(runtime: Any, ordinal: int) -> None:
    """Have the CUDA calls of this thread go to a device: each begins with device 0, and the driver with none."""
    if getattr(_thread, "ordinal", None) != ordinal:
        runtime.setDevice(ordinal)
        _thread.ordinal = ordinal


class CudaCalls:
    """Calls one device. `handles` hold its streams, events and modules, which CuPy destroys with their objects.

    Once the device is `opened`, a GEMM that fails for no better reason loses it; before, it may only mean that a format
    is not for this GPU.
    """

    def __init__(self, ordinal: int, name: str, cupy: Any, cublas: Any) -> None:
        self.opened = False
        self.lost_why = ""
        self.handles: list[Any] = []
        self._ordinal = ordinal
        self._name = name
        self._runtime = cupy.cuda.runtime
        self._cublas_error = cublas.CUBLASError
        # CuPy's pools, which we do not use, have an error of their own.
        self.errors = (
            self._runtime.CUDARuntimeError,
            cupy.cuda.driver.CUDADriverError,  # its numbers are the runtime's
            cublas.CUBLASError,
            cupy.cuda.memory.OutOfMemoryError,
        )

    def call(self, function: Any, *arguments: Any, asked_bytes: int = 0, where: str = DEVICE_MEMORY) -> Any:
        """`function(*arguments)`, with CUDA's errors as OutOfDeviceMemoryError and DeviceLostError where they are that.

        `asked_bytes` is what it is to allocate and `where`, for the former.
        """
        if self.lost_why:
            raise DeviceLostError(self.lost_why)
        try:
            use(self._runtime, self._ordinal)
            return function(*arguments)
        except self.errors as error:
            self._raise_meaning_of(error, asked_bytes, where)
            raise

    def give_back(self, function: Any, *arguments: Any) -> None:
        """Call what gives something back: there is nothing to be done if that fails."""
        with suppress(DeviceLostError, OutOfDeviceMemoryError):
            self.call(function, *arguments)

    def _raise_meaning_of(self, error: Exception, asked_bytes: int, where: str) -> None:
        """Raise what an error means for a run; return where it means nothing but a mistake of ours."""
        status = getattr(error, "status", NO_MEMORY)
        if not isinstance(error, self._cublas_error):
            if status == NO_MEMORY:
                raise self._out_of_memory(asked_bytes, where) from None
            if status in LOST:
                self._lose(error)
        elif status == CUBLAS_NO_MEMORY:
            raise self._out_of_memory(asked_bytes, where) from None
        elif status in CUBLAS_FAILED:
            try:
                self._runtime.deviceSynchronize()
            except self._runtime.CUDARuntimeError as cause:
                self._raise_meaning_of(cause, asked_bytes, where)
            if self.opened:
                self._lose(error)

    def _lose(self, error: Exception) -> NoReturn:
        self.lost_why = f"{self._name} failed: {' '.join(str(error).split())}"
        _lost.append(self)
        raise DeviceLostError(self.lost_why) from None

    def _out_of_memory(self, asked_bytes: int, where: str) -> OutOfDeviceMemoryError:
        if where == PINNED_RAM:
            page_bytes = os.sysconf("SC_PAGE_SIZE")
            total_bytes = page_bytes * os.sysconf("SC_PHYS_PAGES")
            free_bytes = page_bytes * os.sysconf("SC_AVPHYS_PAGES")
        else:
            free_bytes, total_bytes = self.call(self._runtime.memGetInfo)
        return OutOfDeviceMemoryError(asked_bytes, total_bytes - free_bytes, total_bytes, where)
