"""Compile CUDA C for any GPU without one: NVRTC from NVIDIA's wheels, through ctypes."""

import ctypes
import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Usage:
    """The resources of one kernel, as ptxas reports them."""

    registers: int
    spilled_bytes: int
    stack_bytes: int


def find_libraries() -> list[Path]:
    """The NVRTC libraries of the installed wheels: CUDA 12 in nvidia/cuda_nvrtc/lib, CUDA 13 in nvidia/cu13/lib."""
    spec = importlib.util.find_spec("nvidia")
    folders = [Path(folder) for folder in (spec.submodule_search_locations or [])] if spec else []
    found = [path for folder in folders for path in folder.glob("*/lib/libnvrtc.so.*")]
    return sorted(path for path in found if ".alt." not in path.name)


class Nvrtc:
    """One NVRTC library."""

    def __init__(self, path: Path) -> None:
        self._library = ctypes.CDLL(str(path))
        self._library.nvrtcGetErrorString.restype = ctypes.c_char_p

    @property
    def version(self) -> tuple[int, int]:
        """Major and minor version of CUDA."""
        major, minor = ctypes.c_int(), ctypes.c_int()
        self._check(self._library.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor)))
        return major.value, minor.value

    @property
    def capabilities(self) -> set[int]:
        """The compute capabilities it compiles for: 75 for sm_75."""
        count = ctypes.c_int()
        self._check(self._library.nvrtcGetNumSupportedArchs(ctypes.byref(count)))
        numbers = (ctypes.c_int * count.value)()
        self._check(self._library.nvrtcGetSupportedArchs(numbers))
        return set(numbers)

    def compile(self, source: str, kernels: list[str], capability: int, *options: str) -> dict[str, Usage]:
        """Compile for sm_`capability`; give what each kernel, a C++ name such as "k<3>", takes.

        Raises RuntimeError with the log.
        """
        library = self._library
        program = ctypes.c_void_p()
        self._check(library.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"", 0, None, None))
        try:
            for kernel in kernels:
                self._check(library.nvrtcAddNameExpression(program, kernel.encode()))
            arguments = [f"-arch=sm_{capability}", "--std=c++17", "--ptxas-options=-v", *options]
            encoded = (ctypes.c_char_p * len(arguments))(*(argument.encode() for argument in arguments))
            status = library.nvrtcCompileProgram(program, len(arguments), encoded)
            log = self._log(program)
            if status:
                raise RuntimeError(f"NVRTC for sm_{capability}:\n{log}")
            usage = _read_usage(log)
            return {kernel: usage[self._lowered(program, kernel)] for kernel in kernels}
        finally:
            library.nvrtcDestroyProgram(ctypes.byref(program))

    def _log(self, program: ctypes.c_void_p) -> str:
        size = ctypes.c_size_t()
        self._check(self._library.nvrtcGetProgramLogSize(program, ctypes.byref(size)))
        text = ctypes.create_string_buffer(size.value)
        self._check(self._library.nvrtcGetProgramLog(program, text))
        return text.value.decode()

    def _lowered(self, program: ctypes.c_void_p, kernel: str) -> str:
        name = ctypes.c_char_p()
        self._check(self._library.nvrtcGetLoweredName(program, kernel.encode(), ctypes.byref(name)))
        assert name.value is not None
        return name.value.decode()

    def _check(self, status: int) -> None:
        if status:
            raise RuntimeError(f"NVRTC: {self._library.nvrtcGetErrorString(status).decode()}")


def _read_usage(log: str) -> dict[str, Usage]:
    """By mangled name."""
    usage = {}
    for entry in log.split("Compiling entry function '")[1:]:
        stack, stores, loads = (
            int(number)
            for number in re.search(  # type: ignore[union-attr]
                r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", entry
            ).groups()
        )
        registers = int(re.search(r"Used (\d+) registers", entry)[1])  # type: ignore[index]
        usage[entry.partition("'")[0]] = Usage(registers, stores + loads, stack)
    return usage
