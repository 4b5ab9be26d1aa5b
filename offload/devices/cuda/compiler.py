"""Compile our CUDA C kernels when first needed, keep them on disk, and launch them.

NVRTC is called directly rather than through CuPy's RawModule, which wants CUDA's header files and flushes small
numbers to zero. CuPy's modules are handed in by device.py.
"""

import ctypes
import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from offload.compiled_code import NotKept, code_folder, keep_newest
from offload.devices.cuda.errors import LOST, NO_MEMORY
from offload.devices.cuda.kernels.launch import Launch
from offload.devices.cuda.kernels.sources import program
from offload.devices.cuda.libraries import one_line
from offload.errors import DeviceUnavailableError

_MOST_KEPT = 64
_OPTIONS = ("--std=c++17",)


@dataclass(frozen=True)
class BoundLaunch:
    """A launch with its arguments, to be queued any number of times."""

    words: tuple[int, ...]  # what cuLaunchKernel takes
    kept: Any  # the arguments, which one of the words points to


class CudaCompiler:
    """Launches kernels by their C++ names; what was not prepared is compiled by its first launch, unless kept.

    `capability` is the GPU's, 75 for sm_75. Kernels are kept in `folder`, or in one of the user's own if there is.
    """

    def __init__(self, nvrtc: Any, driver: Any, load: Any, capability: int, folder: Path | None = None) -> None:
        """`nvrtc` and `driver` are CuPy's bindings; `load` makes a module of a cubin or PTX.

        Raises DeviceUnavailableError without NVRTC, and for a GPU that is too old for it.
        """
        self._nvrtc, self._driver, self._load = nvrtc, driver, load
        self._folder = folder or _users_folder()
        self._functions: dict[tuple[str, str], Any] = {}
        try:
            self._version: tuple[int, int] = nvrtc.getVersion()
            supported: set[int] = set(nvrtc.getSupportedArchs())
        except RuntimeError as error:  # CuPy looks for the library when it is first called
            raise DeviceUnavailableError(
                "the CUDA compiler library NVRTC cannot be loaded (pip install 'cupy-cuda12x[ctk]' or"
                f" 'cupy-cuda13x[ctk]' brings it): {one_line(error)}"
            ) from None
        # Machine code needs no newer driver than CuPy's own. For a GPU that is newer than this NVRTC: code for
        # the newest it knows, which the driver translates.
        self._machine_code = capability in supported
        older = [known for known in supported if known <= capability]
        if not older:
            raise DeviceUnavailableError(
                f"NVRTC {self._named_version} compiles for sm_{min(supported)} and newer, not for sm_{capability}"
            )
        self._target = f"sm_{capability}" if self._machine_code else f"compute_{max(older)}"

    def __call__(self, launch: Launch, arguments: Sequence[Any], stream: int) -> None:
        """Queue a launch with ctypes arguments. Raises DeviceUnavailableError when it cannot be compiled or loaded."""
        self.launch(self.bind(launch, arguments, stream))

    def launch(self, bound: BoundLaunch) -> None:
        """Queue a launch. The driver copies its arguments before it returns."""
        self._driver.launchKernel(*bound.words)

    def bind(self, launch: Launch, arguments: Sequence[Any], stream: int) -> BoundLaunch:
        """A launch on a stream. Raises DeviceUnavailableError when it cannot be compiled or loaded."""
        key = launch.program, launch.kernel
        if key not in self._functions:
            self.prepare([launch])
        function = self._functions[key]
        addresses = (ctypes.c_void_p * len(arguments))(*map(ctypes.addressof, arguments))
        x, y = launch.blocks
        grid, block = (x, y, 1), (launch.threads, 1, 1)
        words = (function.ptr, *grid, *block, launch.shared_bytes, stream, ctypes.addressof(addresses), 0)
        return BoundLaunch(words, (arguments, addresses))

    def prepare(self, launches: Iterable[Launch]) -> None:
        """Compile and load what launches need; kernels of one program together. Raises DeviceUnavailableError."""
        programs: dict[str, set[str]] = {}
        for launch in launches:
            programs.setdefault(launch.program, set()).add(launch.kernel)
        for file, kernels in programs.items():
            if any((file, kernel) not in self._functions for kernel in kernels):
                self._load_program(file, sorted(kernels))

    def _load_program(self, file: str, kernels: Sequence[str]) -> None:
        source = program(file)
        key = "\0".join([source, *kernels, self._target, *_OPTIONS, str(self._version)])
        kept = self._folder / f"{hashlib.sha256(key.encode()).hexdigest()}.kernels" if self._folder else None
        names, code = (_read(kept) if kept else None) or ({}, b"")
        if not names:
            names, code = self._compile(source, kernels)
            if kept:
                _write(kept, names, code)
        if kept:
            keep_newest(kept.parent, kept, _MOST_KEPT)
        try:
            module = self._load(code)
            functions = {(file, kernel): module.get_function(names[kernel]) for kernel in kernels}
        except (RuntimeError, OSError) as error:
            if getattr(error, "status", None) in (NO_MEMORY, *LOST):
                raise
            raise DeviceUnavailableError(
                f"the driver cannot load {_named(kernels)} that NVRTC {self._named_version} compiled for"
                f" {self._target}; update the driver: {one_line(error)}"
            ) from None
        # Functions keep their modules alive, and those that are there already may be running.
        self._functions = functions | self._functions

    def _compile(self, source: str, kernels: Sequence[str]) -> tuple[dict[str, str], bytes]:
        """The mangled names and the code of some kernels."""
        nvrtc = self._nvrtc
        made = nvrtc.createProgram(source, "", (), ())
        try:
            for kernel in kernels:
                nvrtc.addNameExpression(made, kernel)
            try:
                nvrtc.compileProgram(made, (f"-arch={self._target}", *_OPTIONS))
            except nvrtc.NVRTCError:
                log = one_line(nvrtc.getProgramLog(made))
                raise DeviceUnavailableError(
                    f"NVRTC {self._named_version} does not compile {_named(kernels)}: {log}"
                ) from None
            code = nvrtc.getCUBIN(made) if self._machine_code else nvrtc.getPTX(made)
            return {kernel: str(nvrtc.getLoweredName(made, kernel)) for kernel in kernels}, bytes(code)
        finally:
            nvrtc.destroyProgram(made)

    @property
    def _named_version(self) -> str:
        return ".".join(map(str, self._version))


def _users_folder() -> Path | None:
    try:
        return code_folder("cuda")
    except NotKept:
        return None  # compiled anew in every process


def _named(kernels: Sequence[str]) -> str:
    """The first of some kernels, which are of one program, and how many there are besides it."""
    return f"the kernel {kernels[0]}" + (f" and {len(kernels) - 1} more" if len(kernels) > 1 else "")


# Kept kernels: the hash of what follows, their mangled names as JSON, a zero byte, the code.
_HASH_BYTES = hashlib.sha256().digest_size


def _read(kept: Path) -> tuple[dict[str, str], bytes] | None:
    try:
        data = kept.read_bytes()
    except OSError:
        return None
    content = data[_HASH_BYTES:]
    if hashlib.sha256(content).digest() != data[:_HASH_BYTES]:
        return None
    names, _, code = content.partition(b"\0")
    return json.loads(names), code


def _write(kept: Path, names: dict[str, str], code: bytes) -> None:
    content = json.dumps(names).encode() + b"\0" + code
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=kept.parent, delete=False) as part:
            part.write(hashlib.sha256(content).digest() + content)
        os.replace(part.name, kept)
    except OSError:
        return  # no folder to write to, or a full disk: compile again next time
