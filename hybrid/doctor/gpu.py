"""The GPUs, their driver, and whether CuPy and CUDA go with it."""

from collections.abc import Mapping
from pathlib import Path

from hybrid.doctor.cuda_probe import ProbeResult, examine_libraries
from hybrid.doctor.packages import (
    CU12_DRIVER,
    CU13_DRIVER,
    CUPY,
    FindVersion,
    driver_major,
    installed,
    suitable_extra,
)
from hybrid.doctor.report import Finding, note, ok, problem
from offload.devices.cuda.nvml import Driver, GpuSeen
from offload.spec.units import format_bytes

_NVIDIA_VENDOR, _DISPLAY_CLASS = "0x10de", "0x03"
_NEEDED = {13: CU13_DRIVER, 12: CU12_DRIVER, 11: 450}
_UPDATE_DRIVER = f"sudo apt-get install -y nvidia-driver-{CU13_DRIVER}"


def examine_driver(driver: Driver | None, why_not: str, root: Path = Path("/")) -> list[Finding]:
    """Findings about the driver and its GPUs. `why_not` says why there is no driver; `root` is where sys is."""
    if driver is None:
        return [_no_driver(why_not, root)]
    cuda = "unknown" if driver.cuda_version is None else ".".join(map(str, driver.cuda_version))
    findings = [ok(f"driver {driver.version or 'of unknown version'}, serves CUDA up to {cuda}")]
    if not driver.gpus:
        findings.append(note("the driver sees no GPU"))
    return findings + [_gpu(index, gpu) for index, gpu in enumerate(driver.gpus)]


def examine_cuda(
    driver: Driver | None,
    probed: ProbeResult | None,
    find_version: FindVersion,
    environment: Mapping[str, str],
    root: Path = Path("/"),
) -> list[Finding]:
    """Findings about CuPy and CUDA; `probed` is None where CuPy is not installed."""
    extra = suitable_extra(driver)
    builds = {name: major for name, major in CUPY.items() if installed(find_version, name)}
    has_gpu = driver is not None and bool(driver.gpus)
    findings = _hidden(environment) if has_gpu else []
    if driver is not None:
        findings += [_too_old(name, major, driver, extra) for name, major in builds.items() if _is_old(driver, major)]
    if probed is None:
        return findings + _no_cupy(driver, extra, find_version)
    if not probed.error:
        findings.append(ok(f"CUDA runs on {probed.name}"))
    elif not has_gpu:
        findings.append(note(f"CUDA does not run: {probed.error}"))
    else:
        known = next((finding.mend for finding in findings if finding.mend), "")
        mend = known or (_reinstall(builds, extra) if probed.has_libcuda else _install_driver(root))
        findings.append(problem(f"CUDA does not run: {probed.error}", mend))
    findings += [note(f"{name} weights stay on the CPU: {reason}") for name, reason in probed.unsupported.items()]
    return findings + examine_libraries(probed.libraries, find_version, extra)


def _hidden(environment: Mapping[str, str]) -> list[Finding]:
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return []
    if visible.strip() in ("", "-1"):
        return [note(f"CUDA_VISIBLE_DEVICES is {visible!r}: CUDA sees no GPU", "unset CUDA_VISIBLE_DEVICES")]
    return [note(f"CUDA_VISIBLE_DEVICES is {visible!r}: CUDA sees no others")]


def _no_driver(why_not: str, root: Path) -> Finding:
    if not _has_nvidia_gpu(root):
        return note(f"{why_not}; everything runs on the CPU")
    return problem(f"an NVIDIA GPU is in this machine, but no driver answers: {why_not}", _install_driver(root))


def _install_driver(root: Path) -> str:
    """In a container the driver is the host's, and given to it or not, in parts."""
    in_container = (root / ".dockerenv").exists()
    return "docker run --gpus all -e NVIDIA_DRIVER_CAPABILITIES=compute,utility ..." if in_container else _UPDATE_DRIVER


def _has_nvidia_gpu(root: Path) -> bool:
    for device in (root / "sys" / "bus" / "pci" / "devices").glob("*"):
        try:
            vendor, kind = (device / "vendor").read_text(), (device / "class").read_text()
        except OSError:
            continue
        if vendor.strip() == _NVIDIA_VENDOR and kind.startswith(_DISPLAY_CLASS):
            return True
    return False


def _gpu(index: int, gpu: GpuSeen) -> Finding:
    parts = [f"GPU {index}: {gpu.name or 'name unknown'}"]
    if gpu.total_bytes is None or gpu.free_bytes is None:
        parts.append("memory unknown")
    else:
        parts.append(f"{format_bytes(gpu.free_bytes)} of {format_bytes(gpu.total_bytes)} free")
    if gpu.compute_capability is not None:
        parts.append("compute capability {}.{}".format(*gpu.compute_capability))
    if gpu.total_bytes is None:
        return note(f"{', '.join(parts)}: give --cuda a number of GiB")
    return ok(", ".join(parts))


def _is_old(driver: Driver, cupy_major: int) -> bool:
    major = driver_major(driver)
    if major is not None:
        return major < _NEEDED[cupy_major]
    return driver.cuda_version is not None and driver.cuda_version[0] < cupy_major


def _too_old(name: str, cupy_major: int, driver: Driver, extra: str) -> Finding:
    text = f"{name} needs driver {_NEEDED[cupy_major]} or newer, and this is {driver.version or 'an older one'}"
    if extra == "cpu":
        return problem(text, _UPDATE_DRIVER)
    return problem(text, f"pip uninstall -y {name} && pip install 'hybrid-run[{extra}]'")


def _no_cupy(driver: Driver | None, extra: str, find_version: FindVersion) -> list[Finding]:
    if driver is None or not driver.gpus:
        return [note("CuPy is not installed: only a GPU needs it")]
    if extra == "cpu":
        text = f"the driver is too old for CUDA 12, which needs {CU12_DRIVER} or newer: the GPU is not used"
        return [problem(text, _UPDATE_DRIVER)]
    rival = "pip uninstall -y onnxruntime && " if installed(find_version, "onnxruntime") else ""
    return [problem("CuPy is not installed: the GPU is not used", f"{rival}pip install 'hybrid-run[{extra}]'")]


def _reinstall(builds: Mapping[str, int], extra: str) -> str:
    """A build of CuPy that suits the driver, with the CUDA libraries it needs."""
    suitable = {"cu13": "cupy-cuda13x", "cu12": "cupy-cuda12x"}.get(extra)
    if suitable is None:
        return _UPDATE_DRIVER
    others = [name for name in builds if name != suitable]
    drop = f"pip uninstall -y {' '.join(others)} && " if others else ""
    return f"{drop}pip install --upgrade '{suitable}[ctk]'"
