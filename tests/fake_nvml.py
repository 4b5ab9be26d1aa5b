"""pynvml without a driver: one GPU whose answers tests choose."""

import os
import sys
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

MY_PID, OTHER_PID = os.getpid(), 1 << 22


class NVMLError(Exception):
    """See pynvml."""

    def __init__(self, value: int) -> None:
        super().__init__({3: "Not Supported", 13: "Function Not Found"}.get(value, f"error {value}"))
        self.value = value


class NVMLLibraryMismatchError(Exception):
    """Of a driver too old for pynvml; no NVMLError there either."""


class FakeNvml:
    """`own_bytes` says what this process takes; the questions in `refused` raise what they are mapped to."""

    def __init__(self, own_bytes: Callable[[], int] = lambda: 0, others_bytes: int = 0) -> None:
        self.own_bytes = own_bytes
        self.others_bytes = others_bytes
        self.pids = {MY_PID: True, OTHER_PID: True}  # those listed, and whether it is told what they take
        self.refused: dict[str, Exception] = {}
        self.busy, self.memory_busy = 40, 20  # per cent
        self.kilobytes_per_s = {0: 100, 1: 9_000}  # sent, received
        self.started = 0  # less what was shut down
        self.asked: list[str] = []

    def install(self, monkeypatch: Any) -> "FakeNvml":
        """Put it in the place of pynvml."""
        module = ModuleType("pynvml")
        module.__dict__.update(
            NVMLError=NVMLError,
            NVMLLibraryMismatchError=NVMLLibraryMismatchError,
            NVML_ERROR_LIBRARY_NOT_FOUND=12,
            NVML_PCIE_UTIL_TX_BYTES=0,
            NVML_PCIE_UTIL_RX_BYTES=1,
            nvmlInit=lambda: self._start(1),
            nvmlShutdown=lambda: self._start(-1),
            nvmlDeviceGetHandleByPciBusId=self._answer("handle", lambda bus: 7),
            nvmlDeviceGetMemoryInfo=self._answer("memory", self._memory),
            nvmlDeviceGetComputeRunningProcesses=self._answer("processes", self._processes),
            nvmlDeviceGetUtilizationRates=self._answer(
                "utilisation", lambda handle: SimpleNamespace(gpu=self.busy, memory=self.memory_busy)
            ),
            nvmlDeviceGetPcieThroughput=self._answer("pcie", lambda handle, counter: self.kilobytes_per_s[counter]),
        )
        monkeypatch.setitem(sys.modules, "pynvml", module)
        monkeypatch.setattr("offload.devices.cuda.vram_meter._before_bytes", {})
        return self

    def _start(self, step: int) -> None:
        if step > 0 and "init" in self.refused:
            raise self.refused["init"]
        self.started += step

    def _answer(self, question: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def answer(*arguments: Any) -> Any:
            assert self.started > 0, "asked before nvmlInit, or after nvmlShutdown"
            self.asked.append(question)
            if question in self.refused:
                raise self.refused[question]
            return function(*arguments)

        return answer

    def _memory(self, handle: int) -> SimpleNamespace:
        used = self.own_bytes() + self.others_bytes
        return SimpleNamespace(total=1 << 34, used=used, free=(1 << 34) - used)

    def _processes(self, handle: int) -> list[SimpleNamespace]:
        if not self.own_bytes():
            return []
        used = {MY_PID: self.own_bytes(), OTHER_PID: self.others_bytes}
        return [SimpleNamespace(pid=pid, usedGpuMemory=used[pid] if told else None) for pid, told in self.pids.items()]
