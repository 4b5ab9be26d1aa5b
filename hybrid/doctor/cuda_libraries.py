"""Which CUDA libraries a process has loaded, by its memory map; what is installed may be another one."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from hybrid.doctor.findings import Finding, ok, problem
from hybrid.doctor.versions import FindVersion, installed

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
