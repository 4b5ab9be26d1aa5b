"""NVRTC and the driver's part of CuPy, in front of the shim: "compiled code" is the source and names of kernels."""

import ctypes
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tests.device.emulated_cupy import EmulatedCupy
from tests.kernels.cuda.host_shim import HostProgram, Schedule


class NVRTCError(RuntimeError):
    pass


class EmulatedNvrtc:
    """One NVRTC and one driver; `compiled` has the options of every compilation, `launched` kernels and streams."""

    NVRTCError = NVRTCError

    def __init__(self, capabilities: tuple[int, ...] = (75, 80, 90), broken: str = "", refuses: str = "") -> None:
        """`broken`: getVersion fails like this. `refuses`: the driver loads nothing and says this."""
        self.capabilities, self.broken, self.refuses = capabilities, broken, refuses
        self.compiled: list[tuple[str, ...]] = []
        self.launched: list[tuple[str, int]] = []
        self._sources: dict[int, list[str]] = {}
        self._functions: dict[int, tuple[HostProgram, str]] = {}

    # cupy_backends.cuda.libs.nvrtc

    def getVersion(self) -> tuple[int, int]:
        if self.broken:
            raise RuntimeError(self.broken)
        return 12, 9

    def getSupportedArchs(self) -> tuple[int, ...]:
        return self.capabilities

    def createProgram(self, source: str, name: str, headers: Any, include_names: Any) -> int:
        self._sources[len(self._sources) + 1] = [source]
        return len(self._sources)

    def addNameExpression(self, program: int, kernel: str) -> None:
        self._sources[program].append(kernel)

    def compileProgram(self, program: int, options: tuple[str, ...]) -> None:
        self.compiled.append(options)
        if "#error" in self._sources[program][0]:
            raise NVRTCError("NVRTC_ERROR_COMPILATION (6)")

    def getProgramLog(self, program: int) -> str:
        return "float_nk.cu(1): error:\n  it says #error"

    def getLoweredName(self, program: int, kernel: str) -> str:
        assert kernel in self._sources[program]
        return f"mangled {kernel}"

    def getCUBIN(self, program: int) -> bytes:
        source, *kernels = self._sources[program]
        return json.dumps([source, kernels]).encode()

    def getPTX(self, program: int) -> bytes:
        return self.getCUBIN(program)

    def destroyProgram(self, program: int) -> None:
        assert program in self._sources

    # cupy.cuda.function

    def load(self, code: bytes) -> Any:
        if self.refuses:
            raise RuntimeError(self.refuses)
        source, kernels = json.loads(code)
        compiled = HostProgram(source, kernels)

        def get_function(name: str) -> Any:
            kernel = name.removeprefix("mangled ")
            assert kernel in kernels
            handle = len(self._functions) + 1
            self._functions[handle] = (compiled, kernel)
            return SimpleNamespace(ptr=handle)

        return SimpleNamespace(get_function=get_function)

    # cupy.cuda.driver

    def launchKernel(self, handle: int, *arguments: int) -> None:
        gx, gy, gz, bx, by, bz, shared_bytes, stream, addresses, extra = arguments
        assert (gz, by, bz, extra) == (1, 1, 1, 0)
        program, kernel = self._functions[handle]
        self.launched.append((kernel, stream))
        program.launch_raw(kernel, (gx, gy), bx, shared_bytes, ctypes.c_void_p(addresses), Schedule.FORWARD)

    def install(self, monkeypatch: Any, cupy: EmulatedCupy, home: Path) -> None:
        """Put it and `cupy` in the place of CuPy, and have "compiled" kernels kept in another home folder."""
        monkeypatch.setenv("HOME", str(home))
        emulated = self

        class Module:
            """Lives as long as its functions, and complains of a lost context when it is gone."""

            def load(self, code: bytes) -> None:
                self._loaded: Any = None
                cupy.enter("moduleLoad")
                self._loaded = emulated.load(code)

            def get_function(self, name: str) -> Any:
                function = self._loaded.get_function(name)
                function.module = self
                return function

            def __del__(self) -> None:
                if self._loaded is not None and not sys.is_finalizing():
                    cupy.enter("moduleUnload")

        def launch(*arguments: int) -> None:
            cupy.enter("launchKernel")
            self.launchKernel(*arguments)

        cupy.install(monkeypatch)
        cuda = sys.modules["cupy.cuda"]
        monkeypatch.setattr(cuda.driver, "launchKernel", launch, raising=False)
        monkeypatch.setattr(cuda, "function", SimpleNamespace(Module=Module), raising=False)
        monkeypatch.setattr(sys.modules["cupy_backends.cuda.libs"], "nvrtc", self, raising=False)


@dataclass
class Emulated:
    """CuPy and NVRTC."""

    cupy: EmulatedCupy
    nvrtc: EmulatedNvrtc
