"""The examination: look at this machine, and at a model if there is one, item by item."""

import platform
from collections.abc import Callable, Mapping
from contextlib import closing, nullcontext
from importlib.metadata import version
from pathlib import Path

from hybrid.doctor.cuda_probe import CudaProbe, ProbeResult
from hybrid.doctor.gpu import examine_cuda, examine_driver
from hybrid.doctor.machine import (
    examine_calibration,
    examine_hub_cache,
    examine_kernel_cache,
    examine_memory,
    examine_processor,
    hub_cache,
)
from hybrid.doctor.packages import (
    CUPY,
    FindVersion,
    examine_numba,
    examine_packages,
    import_error,
    installed,
    suitable_extra,
)
from hybrid.doctor.report import Finding, Report, Section, note
from hybrid.machine.cgroups import read_limits
from hybrid.machine.ram import Ram, read_ram
from hybrid.machine.threads import default_threads
from offload.devices.cuda import nvml
from offload.devices.cuda.nvml import Driver
from offload.errors import DeviceUnavailableError

_Sections = Mapping[str, Callable[[], list[Finding]]]  # by title


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
    has_cupy = any(installed(find_version, name) for name in (*CUPY, "cupy"))
    with closing(CudaProbe()) if has_cupy else nullcontext() as probe:
        driver, why_no_driver = _driver()
        limits = read_limits(root)
        ram = read_ram(limits, root)
        first = _examined(
            {
                f"System: {platform.platform(terse=True)}": lambda: [
                    *examine_processor(limits, root),
                    examine_calibration(default_threads()),
                ],
                "Memory": lambda: examine_memory(ram, limits, root),
                "Packages": lambda: examine_packages(
                    find_version, suitable_extra(driver), lambda: import_error("hybrid.engine.island")
                ),
                "CPU kernels": lambda: [*examine_numba(), *examine_kernel_cache()],
                "Disk": lambda: examine_hub_cache(hub_cache(environment)),
                "GPU": lambda: examine_driver(driver, why_no_driver, root),
            }
        )
        probed = probe.result() if probe is not None else None
    last: dict[str, Callable[[], list[Finding]]]
    last = {"CUDA": lambda: examine_cuda(driver, probed, find_version, environment, root)}
    if model is not None:
        last[f"Model {model}"] = lambda: _model(model, ram, driver, probed)
    return Report((*first, *_examined(last)))


def _examined(parts: _Sections) -> list[Section]:
    """A section for each part; one that fails says so in its place, for the others are what will explain it."""
    sections = []
    for title, examine_part in parts.items():
        try:
            findings = examine_part()
        except Exception as error:
            findings = [note(f"could not be examined: {type(error).__name__}: {error}")]
        sections.append(Section(title, tuple(findings)))
    return sections


def _driver() -> tuple[Driver | None, str]:
    """The driver, or why there is none."""
    try:
        return nvml.driver(), ""
    except DeviceUnavailableError as error:
        return None, str(error)
    except Exception as error:  # a foreign module in place of nvidia-ml-py may do anything
        return None, f"nvidia-ml-py fails: {type(error).__name__}: {error}"


def _model(model: Path, ram: Ram | None, driver: Driver | None, probed: ProbeResult | None) -> list[Finding]:
    from hybrid.doctor.model import examine_model

    return examine_model(model, ram, driver, probed.unsupported if probed is not None else {})
