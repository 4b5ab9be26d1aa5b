"""Start CUDA in a process of its own: libraries that do not match may crash it, or never come back."""

import ctypes
import json
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hybrid.doctor.cuda_libraries import LoadedLibrary, loaded_libraries

_CODE = "import sys; sys.path[:] = {path!r}; from hybrid.doctor.cuda_probe import main; main()"
_TIMEOUT_S = 30.0  # the first import of CuPy from a cold disk takes many seconds


@dataclass(frozen=True)
class ProbeResult:
    """What became of it. `error` says why CUDA does not run; `unsupported` which weight formats it cannot multiply.

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
