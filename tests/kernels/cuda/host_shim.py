"""Run the CUDA C kernels on the CPU: compile them behind shim/shim.h and launch a block's threads as fibers."""

import ctypes
import enum
import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from offload.devices.cuda.kernels.launch import Launch
from offload.devices.cuda.kernels.sources import program

SHIM = Path(__file__).parent / "shim"
# Undefined behaviour traps, so that no library of the sanitizer is needed. Sums and products are those of the
# source, as NVRTC's are, except that the kernels ask for fused ones by name.
FLAGS = (
    *("-std=c++17", "-O0", "-g0", "-fPIC", "-w", "-ffp-contract=off"),
    *("-fsanitize=undefined", "-fno-sanitize-recover=undefined", "-fsanitize-undefined-trap-on-error"),
    *("-fno-sanitize=vptr", "-U_FORTIFY_SOURCE"),  # which would refuse jumps between the fibers' stacks
)


class Schedule(enum.IntEnum):
    """Which thread of a block runs next: until a barrier, and in ROUND_ROBIN until the next load."""

    FORWARD = 0
    REVERSE = 1
    RANDOM = 2
    ROUND_ROBIN = 3


class KernelFault(Exception):
    """A kernel did what no kernel may do."""


_FAULTS = {
    1: "an access outside of the arrays",
    2: "undefined behaviour: a misaligned access, a shift or a sum out of range, ...",
    3: "threads wait at a barrier that others never reach",
    4: "a shuffle that not all 32 lanes take part in",
}


class HostProgram:
    """Kernels of one source, compiled for the CPU."""

    def __init__(self, source: str, kernels: Sequence[str]) -> None:
        """`kernels` are C++ names such as "k<3>". Skips the test when there is no C++ compiler."""
        launchers = "".join(f"LAUNCHER(launch_{i}, {kernel})\n" for i, kernel in enumerate(kernels))
        text = f'#include "shim.h"\n{source}\n#line 1 "launchers"\n{launchers}'
        self._library = ctypes.CDLL(str(_compiled(text, ".so", (str(_scheduler()),))))
        self._launchers = {kernel: self._library[f"launch_{i}"] for i, kernel in enumerate(kernels)}

    def launch(self, launch: Launch, arguments: Sequence[Any], schedule: Schedule = Schedule.FORWARD) -> None:
        """Run a kernel with ctypes arguments. Raises KernelFault."""
        addresses = (ctypes.c_void_p * len(arguments))(*map(ctypes.addressof, arguments))
        self.launch_raw(launch.kernel, launch.blocks, launch.threads, launch.shared_bytes, addresses, schedule)

    def launch_raw(
        self, kernel: str, blocks: tuple[int, int], threads: int, shared_bytes: int, arguments: Any, schedule: Schedule
    ) -> None:
        """Run a kernel with an array of the addresses of its arguments, as cuLaunchKernel has them."""
        grid = (ctypes.c_uint * 2)(*blocks)
        fault = self._launchers[kernel](grid, threads, ctypes.c_size_t(shared_bytes), int(schedule), arguments)
        if fault:
            raise KernelFault(f"{kernel}: {_FAULTS[fault]}")


class HostLauncher:
    """A launcher for CudaKernels. `kernels` are compiled together by program; others alone, at their first launch."""

    def __init__(
        self, kernels: Mapping[str, Sequence[str]] | None = None, source: Callable[[str], str] = program
    ) -> None:
        self._kernels = dict(kernels or {})
        self._source = source
        self._programs: dict[tuple[str, ...], HostProgram] = {}
        self.schedule = Schedule.FORWARD
        self.launches: list[Launch] = []

    def __call__(self, launch: Launch, arguments: Sequence[Any], stream: int) -> None:
        together = tuple(self._kernels.get(launch.program, ()))
        kernels = together if launch.kernel in together else (launch.kernel,)
        key = (launch.program, *kernels)
        if key not in self._programs:
            self._programs[key] = HostProgram(self._source(launch.program), kernels)
        self._programs[key].launch(launch, arguments, self.schedule)
        self.launches.append(launch)


def _scheduler() -> Path:
    return _compiled((SHIM / "shim.cpp").read_text(), ".o", ())


def _compiled(text: str, suffix: str, objects: tuple[str, ...]) -> Path:
    """Compile C++ unless the same text was compiled before on this machine."""
    key = "\0".join([text, (SHIM / "shim.h").read_text(), *FLAGS, *objects, _compiler()])
    folder = Path(tempfile.gettempdir()) / f"hybrid-run-cuda-shim-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    made = folder / (hashlib.sha256(key.encode()).hexdigest()[:24] + suffix)
    if not made.exists():
        kind = "-shared" if suffix == ".so" else "-c"
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            source, result = Path(scratch, "source.cpp"), Path(scratch, "result")
            source.write_text(text)
            command = [_compiler(), *FLAGS, kind, f"-I{SHIM}", str(source), *objects, "-o", str(result)]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                raise RuntimeError(f"{' '.join(command)}\n{done.stderr}")
            result.replace(made)
    return made


@functools.cache
def _compiler() -> str:
    for name in ("g++", "clang++", "c++"):
        found = shutil.which(name)
        if found:
            return found
    pytest.skip("no C++ compiler to run CUDA kernels on the CPU with")
