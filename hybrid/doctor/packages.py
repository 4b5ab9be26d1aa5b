"""Python, installed packages that are missing, too old, or of different CUDA versions, and the extra for a driver."""

import importlib
import re
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError

from hybrid.doctor.report import Finding, note, ok, problem
from hybrid.errors import InstallationError
from hybrid.machine.packages import check_packages
from offload.devices.cuda.nvml import Driver

FindVersion = Callable[[str], str]

_OLDEST_PYTHON, _NEWEST_PYTHON = (3, 11), (3, 13)
_OLDEST_ONNXRUNTIME = (1, 24)
_FIRST_CUDA_13_ONNXRUNTIME = (1, 27)
_FIRST_REAL_NVIDIA_SHIM = 12  # from here the package `pynvml` only forwards to nvidia-ml-py
CUPY = {"cupy-cuda13x": 13, "cupy-cuda12x": 12, "cupy-cuda11x": 11}  # CUDA major of each build
_SHOWN = ("hybrid-run", "numpy", "numba", "onnx", "scipy", "nvidia-ml-py", *CUPY)
# The oldest drivers that serve CUDA 13 and CUDA 12.
CU13_DRIVER, CU12_DRIVER = 580, 525


def examine_packages(
    find_version: FindVersion, extra: str, why_not: Callable[[], str], python: tuple[int, ...] = sys.version_info[:3]
) -> list[Finding]:
    """Findings about Python and packages. `extra` is the one to recommend.

    `why_not` imports onnxruntime and gives its error, or nothing; it is asked when the packages look right.
    """
    findings = [_python(python)]
    versions = {name: version for name in _SHOWN if (version := installed(find_version, name))}
    findings.append(ok(", ".join(f"{name} {version}" for name, version in versions.items()) or "no package metadata"))
    conflict = _conflict(find_version, extra)
    findings += [conflict] if conflict else _onnxruntime(find_version, why_not)
    findings += _cuda_majors(find_version)
    findings += _retired_pynvml(find_version)
    return findings


def import_error(module: str) -> str:
    """Say why a module cannot be imported; empty when it can."""
    try:
        importlib.import_module(module)
    except Exception as error:  # a library that is half installed may raise anything
        return str(error) or type(error).__name__
    return ""


def examine_numba(why_not: Callable[[str], str] = import_error) -> list[Finding]:
    """Findings about what compiles the CPU kernels; `why_not` gives a module's import error, or nothing."""
    if reason := why_not("numba"):
        return [problem(f"numba cannot be imported: {reason}", "pip install --force-reinstall numba")]
    return []


def installed(find_version: FindVersion, name: str) -> str:
    """The version of a package; empty when it is not installed."""
    try:
        return find_version(name) or ""
    except PackageNotFoundError:
        return ""


def numbers(version: str) -> tuple[int, ...]:
    """ "1.26.0rc1" as (1, 26, 0); enough to compare releases with."""
    return tuple(int(number) for number in re.findall(r"\d+", version)[:3])


def driver_major(driver: Driver) -> int | None:
    """580 for driver 580.65.06; None when it does not tell."""
    found = numbers(driver.version or "")
    return found[0] if found else None


def suitable_extra(driver: Driver | None) -> str:
    """The extra of hybrid-run that this driver can serve: cu13, cu12 or cpu."""
    if driver is None or not driver.gpus:
        return "cpu"
    major = driver_major(driver)
    if major is None:  # the newest CUDA that it serves tells as much
        cuda = (driver.cuda_version or (0, 0))[0]
        return "cu13" if cuda >= 13 else "cu12" if cuda == 12 else "cpu"
    return "cu13" if major >= CU13_DRIVER else "cu12" if major >= CU12_DRIVER else "cpu"


def _python(python: tuple[int, ...]) -> Finding:
    text = f"Python {'.'.join(map(str, python))}"
    if _OLDEST_PYTHON <= python[:2] <= _NEWEST_PYTHON:
        return ok(text)
    return problem(f"{text}: must be 3.11, 3.12 or 3.13", "uv venv --python 3.13 && uv pip install 'hybrid-run[cpu]'")


def _conflict(find_version: FindVersion, extra: str) -> Finding | None:
    """Packages that overwrite each other, or none that runs; judged where every run judges it."""
    try:
        check_packages(find_version)
    except InstallationError as error:
        what, _, command = str(error).partition(": pip ")
        command = command.partition(" (")[0].replace("[cpu]", f"[{extra}]")
        return problem(what.partition(";")[0], f"pip {command}" if command else "")
    return None


def _onnxruntime(find_version: FindVersion, why_not: Callable[[], str]) -> list[Finding]:
    name = next(name for name in ("onnxruntime", "onnxruntime-gpu") if installed(find_version, name))
    version = installed(find_version, name)
    if numbers(version) < _OLDEST_ONNXRUNTIME:
        return [problem(f"{name} {version}: must be 1.24 or newer", f"pip install --upgrade '{name}>=1.24'")]
    if reason := why_not():
        again = f"pip install --force-reinstall --no-deps {name}=={version}"
        if name == "onnxruntime-gpu" and numbers(version) == (1, 27, 0):  # its Python module is linked to CUDA 13
            again = "pip install 'onnxruntime-gpu>=1.28'"
        return [problem(f"{name} {version} cannot be imported: {reason}", again)]
    return [ok(f"{name} {version}")]


def _cuda_majors(find_version: FindVersion) -> list[Finding]:
    """CuPy and onnxruntime-gpu bring libraries of one CUDA version each, and one process can hold only one."""
    runtime = installed(find_version, "onnxruntime-gpu")
    builds = {name: major for name, major in CUPY.items() if installed(find_version, name)}
    if not runtime or len(builds) != 1:
        return []
    name, major = builds.popitem()
    runtime_major = 13 if numbers(runtime)[:2] >= _FIRST_CUDA_13_ONNXRUNTIME else 12
    if major == runtime_major:
        return []
    wanted = {12: "onnxruntime-gpu>=1.24,<1.27", 13: "onnxruntime-gpu>=1.28"}.get(major)
    mend = f"pip install '{wanted}'" if wanted else f"pip uninstall -y {name} && pip install 'hybrid-run[cu12]'"
    return [problem(f"{name} is built for CUDA {major} and onnxruntime-gpu {runtime} for CUDA {runtime_major}", mend)]


def _retired_pynvml(find_version: FindVersion) -> list[Finding]:
    version = installed(find_version, "pynvml")
    if not version:
        return []
    mend = "pip uninstall -y pynvml && pip install --force-reinstall --no-deps nvidia-ml-py"
    if numbers(version) < (_FIRST_REAL_NVIDIA_SHIM,):
        return [problem(f"the retired package pynvml {version} is imported in place of nvidia-ml-py", mend)]
    return [note(f"the package pynvml {version} is retired; nvidia-ml-py does its work", mend)]
