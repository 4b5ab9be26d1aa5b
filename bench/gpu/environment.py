"""Part 1: the machine, the software and the command."""

import importlib.util
import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from bench.gpu.devices import open_device, pci_bus_id
from bench.gpu.job import Job, Json, Save
from bench.gpu.nvml_library import Nvml
from hybrid.machine.cgroups import read_limits
from hybrid.machine.ram import read_ram
from hybrid.machine.threads import default_threads
from offload.errors import DeviceUnavailableError
from offload.spec.linear import WeightFormat
from offload.spec.units import counted, format_bytes

_ROOT = Path(__file__).parents[2]
_PACKAGES = ("cupy-cuda12x", "cupy-cuda13x", "onnxruntime", "onnxruntime-gpu", "numpy", "numba", "scipy", "onnx")
_USED = ("cupy", "onnxruntime", "onnx", "numba", "pytest", "ml_dtypes", "threadpoolctl", "pynvml", "matplotlib")


def run(job: Job, save: Save) -> Json:
    """Look at everything. Raises DeviceUnavailableError without the GPU that was asked for."""
    device = open_device(job.device)
    memory = device.memory()
    supports = {str(form): device.supports(form) or "yes" for form in WeightFormat}
    gpu: Json = {
        "name": device.name,
        "vram_bytes": memory.total_bytes,
        "free_bytes": memory.free_bytes,
        "fixed_bytes": dict(device.fixed_bytes),
        "multiplies": supports,
    }
    device.close()
    if not job.modelled:
        gpu |= _cuda()
    ram = read_ram(read_limits())
    return {
        "gpu": gpu,
        "cpu": _cpu_name(),
        "cores": default_threads(),
        "ram_bytes": ram.total_bytes if ram else None,
        "system": platform.platform(),
        "python": platform.python_version(),
        "packages": {name: version for name in _PACKAGES if (version := _version(name))},
        "missing": [name for name in _USED if not _installed(name)],
        "commit": job.commit or _commit(),
        "command": job.command,
    }


def markdown(found: Json) -> list[str]:
    """A list."""
    gpu = found["gpu"]
    lines = [f"- GPU: {gpu['name']}, {format_bytes(gpu['vram_bytes'])}"]
    if "compute_capability" in gpu:
        lines.append(
            f"- compute capability {gpu['compute_capability']}, driver {gpu['driver']}, CUDA of the driver "
            f"{gpu['cuda_driver']}, CUDA of CuPy {gpu['cuda_runtime']}, PCIe {gpu['pcie']}"
        )
    lines.append(f"- takes before the first weight: {_sizes(gpu['fixed_bytes'])}")
    lines.append("- multiplies: " + "; ".join(f"{name}: {answer}" for name, answer in gpu["multiplies"].items()))
    lines.append(
        f"- CPU: {found['cpu']}, {counted(found['cores'], 'core')}, RAM {format_bytes(found['ram_bytes'] or 0)}"
    )
    lines.append(f"- Python {found['python']}, " + ", ".join(f"{n} {v}" for n, v in found["packages"].items()))
    if found["missing"]:
        lines.append(f"- not installed: {', '.join(found['missing'])}")
    lines.append(f"- commit {found['commit']}, command `{found['command']}`")
    return lines


def _cuda() -> Json:
    from cupy.cuda import runtime

    properties = runtime.getDeviceProperties(0)
    bus_id = pci_bus_id()
    try:
        nvml = Nvml(bus_id)
        driver, pcie = nvml.driver(), str(nvml.pcie())
    except DeviceUnavailableError as error:
        driver = pcie = f"not known ({error})"
    return {
        "compute_capability": f"{properties['major']}.{properties['minor']}",
        "multiprocessors": properties["multiProcessorCount"],
        "l2_bytes": properties["l2CacheSize"],
        "copy_engines": properties["asyncEngineCount"],
        "pci_bus_id": bus_id,
        "driver": driver,
        "cuda_driver": runtime.driverGetVersion(),
        "cuda_runtime": runtime.runtimeGetVersion(),
        "pcie": pcie,
    }


def _sizes(nbytes: dict[str, int]) -> str:
    return ", ".join(f"{name} {format_bytes(value)}" for name, value in nbytes.items())


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), os.uname().machine)


def _installed(module: str) -> bool:
    """Tell whether a module is there, and is not one that stands in for it."""
    loaded = sys.modules.get(module)
    spec = None if loaded is not None else importlib.util.find_spec(module)
    if loaded is None and spec is None:
        return False
    file = spec.origin if spec is not None else getattr(loaded, "__file__", "")
    return "stand_ins" not in (file or "")


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def _commit() -> str:
    """Of this checkout; a GPU machine may have neither git nor .git, then --commit says it."""
    try:
        command = ["git", "-C", str(_ROOT), "describe", "--always", "--dirty", "--abbrev=12"]
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError:
        return "not known"
    return done.stdout.strip() if done.returncode == 0 else "not known"
