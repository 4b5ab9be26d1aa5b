"""The examination: look at this machine, and at a model if there is one, item by item."""

import platform
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path

from hybrid.doctor.calibrated import examine_calibration
from hybrid.doctor.cuda_probe import CudaProbe, ProbeResult
from hybrid.doctor.findings import Finding, Report, Section, note
from hybrid.doctor.folders import examine_hub_cache, examine_kernel_cache, hub_cache
from hybrid.doctor.gpu import examine_cuda, examine_driver
from hybrid.doctor.memory import examine_memory
from hybrid.doctor.packages import CUPY, examine_numba, examine_packages, import_error
from hybrid.doctor.processor import examine_processor
from hybrid.doctor.versions import FindVersion, installed, suitable_extra
from hybrid.machine.cgroups import read_limits
from hybrid.machine.ram import Ram, read_ram
from hybrid.machine.threads import default_threads
from offload.devices.cuda import nvml
from offload.devices.cuda.nvml import Driver
from offload.errors import DeviceUnavailableError


def examine(
    model: Path | None = None,
    environment: Mapping[str, str] | None = None,
    find_version: FindVersion = version,
    root: Path = Path("/"),
) -> Report:
    """Look at everything a run depends on. Never raises for what it finds: each item degrades by itself.

    `environment` is os.environ; `root` is where proc and sys are.
    """
    environment = environment or {}
    cupy = [name for name in (*CUPY, "cupy") if installed(find_version, name)]
    probe = CudaProbe() if cupy else None
    try:
        return _examine(model, environment, find_version, root, probe)
    finally:
        if probe is not None:
            probe.close()


def _examine(
    model: Path | None, environment: Mapping[str, str], find_version: FindVersion, root: Path, probe: CudaProbe | None
) -> Report:
    driver, why_no_driver = _driver()
    limits = read_limits(root)
    ram = read_ram(limits, root)
    sections = [
        _section(
            f"System: {platform.platform(terse=True)}",
            lambda: [*examine_processor(limits, root), examine_calibration(default_threads())],
        ),
        _section("Memory", lambda: examine_memory(ram, limits, root)),
        _section(
            "Packages", lambda: examine_packages(find_version, suitable_extra(driver), _why_onnxruntime_does_not_load)
        ),
        _section("CPU kernels", lambda: [*examine_numba(), *examine_kernel_cache()]),
        _section("Disk", lambda: examine_hub_cache(hub_cache(environment))),
        _section("GPU", lambda: examine_driver(driver, why_no_driver, root)),
    ]
    probed = probe.result() if probe is not None else None
    sections.append(_section("CUDA", lambda: examine_cuda(driver, probed, find_version, environment, root)))
    if model is not None:
        sections.append(_section(f"Model {model}", lambda: _model(model, ram, driver, probed)))
    return Report(tuple(sections))


def _section(title: str, examine_part: Callable[[], list[Finding]]) -> Section:
    """A section; a part that fails says so in its place, for the others are what will explain it."""
    try:
        findings = examine_part()
    except Exception as error:
        findings = [note(f"could not be examined: {type(error).__name__}: {error}")]
    return Section(title, tuple(findings))


def _driver() -> tuple[Driver | None, str]:
    """The driver, or why there is none."""
    try:
        return nvml.driver(), ""
    except DeviceUnavailableError as error:
        return None, str(error)
    except Exception as error:  # a foreign module in place of nvidia-ml-py may do anything
        return None, f"nvidia-ml-py fails: {type(error).__name__}: {error}"


def _why_onnxruntime_does_not_load() -> str:
    return import_error("hybrid.engine.island")


def _model(model: Path, ram: Ram | None, driver: Driver | None, probed: ProbeResult | None) -> list[Finding]:
    from hybrid.doctor.model import examine_model

    return examine_model(model, ram, driver, probed.unsupported if probed is not None else {})
