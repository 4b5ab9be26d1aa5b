"""Start CUDA in a process of its own: libraries that do not match may crash it, or never come back.

Which libraries it has loaded its memory map tells; what is installed may be others.
"""

import ctypes
import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hybrid.doctor.packages import FindVersion, installed
from hybrid.doctor.report import Finding, ok, problem

_CODE = "import sys; sys.path[:] = {path!r}; from hybrid.doctor.cuda_probe import main; main()"
_TIMEOUT_S = 30.0  # the first import of CuPy from a cold disk takes many seconds
_LIBRARY = re.compile(r"lib(cudart|cublas|cublasLt|nvrtc|cuda)(?:-\w+)?\.so(?:\.([\d.]+))?")
# The wheels that bring each library, for files that carry only its major version in their name.
_WHEELS = {
    "cudart": "nvidia-cuda-runtime",
    "cublas": "nvidia-cublas",
    "cublasLt": "nvidia-cublas",
    "nvrtc": "nvidia-cuda-nvrtc",
}


@dataclass(frozen=True, order=True)
class LoadedLibrary:
    """A shared library: "cublas", the version in its file name ("12.4.5.8", "12" or ""), and where it lies."""

    name: str
    version: str
    path: str


@dataclass(frozen=True)
class ProbeResult:
    """The outcome. `error` says why CUDA does not run; `unsupported` which weight formats it cannot multiply.

    `has_libcuda` is whether the driver's part of CUDA is there: a container may be given NVML alone.
    """

    error: str = ""
    name: str = ""
    has_libcuda: bool = True
    unsupported: Mapping[str, str] = field(default_factory=dict)
    libraries: tuple[LoadedLibrary, ...] = ()


class CudaProbe:
    """A probe under way. It runs beside the other examinations, since importing CuPy takes longer than all of them."""

    def __init__(self) -> None:
        code = _CODE.format(path=sys.path)
        self._process = subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )

    def result(self, timeout_s: float = _TIMEOUT_S) -> ProbeResult:
        """Wait for the answer; a process that dies or hangs is an answer too."""
        try:
            output, _ = self._process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            return ProbeResult(error=f"CUDA did not start within {timeout_s:.0f} s")
        finally:
            self.close()
        code = self._process.returncode
        if code < 0:
            return ProbeResult(error=f"the process that starts CUDA was killed by {signal.Signals(-code).name}")
        try:
            return _read(json.loads(output))
        except (ValueError, LookupError, TypeError):
            return ProbeResult(error=f"the process that starts CUDA failed with code {code}")

    def close(self) -> None:
        """End the process if it still runs."""
        self._process.kill()
        self._process.communicate()


def main() -> None:
    """The probing process: one JSON object for the process that asked."""
    json.dump(probe(), sys.stdout)


def probe() -> dict[str, Any]:
    """Start CUDA here, multiply something, and see which libraries that took."""
    from offload.devices.cuda.device import CudaDevice
    from offload.errors import DeviceUnavailableError
    from offload.spec.linear import WeightFormat

    answer: dict[str, Any] = {"error": "", "name": "", "has_libcuda": _has_libcuda(), "unsupported": {}}
    try:
        device = CudaDevice()
        answer["name"] = device.name
        answer["unsupported"] = {str(name): reason for name in WeightFormat if (reason := device.supports(name))}
    except DeviceUnavailableError as error:
        answer["error"] = str(error)
    libraries = loaded_libraries(Path("/proc/self/maps").read_text(errors="replace"))
    answer["libraries"] = [[library.name, library.version, library.path] for library in libraries]
    return answer


def loaded_libraries(maps: str) -> list[LoadedLibrary]:
    """The CUDA libraries in the text of /proc/PID/maps, each once."""
    found = set()
    for line in maps.splitlines():
        fields = line.split(maxsplit=5)  # address, permissions, offset, device, inode, path
        path = fields[5].removesuffix(" (deleted)") if len(fields) == 6 else ""
        if match := _LIBRARY.fullmatch(path.rpartition("/")[2]):
            found.add(LoadedLibrary(match[1], match[2] or "", path))
    return sorted(found)


def examine_libraries(libraries: Sequence[LoadedLibrary], find_version: FindVersion, extra: str) -> list[Finding]:
    """A line for each library, and a problem when they are not all of one CUDA version."""
    findings = [
        ok(f"loaded: lib{library.name} {_version(library, find_version)}, {library.path}") for library in libraries
    ]
    majors = sorted(_majors(libraries))
    if len(majors) > 1:
        mixed = " and ".join(str(major) for major in majors)
        findings.append(
            problem(
                f"libraries of CUDA {mixed} are loaded together",
                f"pip uninstall -y cupy-cuda12x cupy-cuda13x && pip install 'hybrid-run[{extra}]'",
            )
        )
    return findings


def _read(answer: dict[str, Any]) -> ProbeResult:
    libraries = tuple(LoadedLibrary(*map(str, fields)) for fields in answer["libraries"])
    error, name, has_libcuda = str(answer["error"]), str(answer["name"]), bool(answer["has_libcuda"])
    return ProbeResult(error, name, has_libcuda, dict(answer["unsupported"]), libraries)


def _has_libcuda() -> bool:
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


def _majors(libraries: Iterable[LoadedLibrary]) -> set[int]:
    """CUDA versions of the libraries; libcuda is the driver's and serves all of them."""
    majors = (library.version.partition(".")[0] for library in libraries if library.name != "cuda")
    return {int(major) for major in majors if major}


def _version(library: LoadedLibrary, find_version: FindVersion) -> str:
    wheel = _WHEELS.get(library.name)
    if wheel and "/nvidia/" in library.path and "." not in library.version:
        for name in (f"{wheel}-cu{library.version}", wheel):  # without a suffix since CUDA 13
            if version := installed(find_version, name):
                return version
    return library.version
