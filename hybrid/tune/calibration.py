"""Measure this machine: the device, the disk, the CPU's kernels, and steps of real models."""

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from hybrid.errors import UsageError
from hybrid.loading.target import CPU_PROFILE, GPU_PROFILE, SIMULATED_PROFILE
from hybrid.machine.cgroups import read_limits
from hybrid.machine.cpu_load import look_at_others
from hybrid.machine.profiles import busy_warning, find_profile, machine_name
from hybrid.machine.ram import read_ram
from hybrid.shown import show
from hybrid.tune.step_costs import StepEffort, effort_within, measure_step_costs
from offload.calibrate.machine import Effort, calibrate
from offload.devices.base import Device
from offload.devices.simulated.device import SimulatedDevice
from offload.devices.simulated.rates import SimulatedRates
from offload.errors import DeviceUnavailableError
from offload.machine.profile import DeviceProfile
from offload.spec.units import GIB, MIB, counted, format_bytes

_STAGES = 8  # that are told of, with a device
_LEAST_BYTES = 64 * MIB
_DISK_BYTES = 256 * MIB
_DISK_PIECE_BYTES = 8 * MIB
_LONGEST_LAUNCH_S = 5e-4  # ten times what it takes where it is slow


@dataclass(frozen=True)
class TuneEffort:
    """The effort of a calibration, within `nbytes` bytes of RAM."""

    offload: Effort
    step: StepEffort
    disk_bytes: int = _DISK_BYTES


@dataclass(frozen=True)
class Calibrated:
    """The measured profile, the estimate that it takes the place of, and notes on what could not be measured."""

    profile: DeviceProfile
    estimate: DeviceProfile
    notes: tuple[str, ...] = field(default=())


def choose_effort(available_bytes: int) -> TuneEffort:
    """As much as a quarter of the available RAM allows, at most 1 GiB. Raises UsageError below 256 MiB."""
    nbytes = min(GIB, available_bytes // 4)
    if nbytes < _LEAST_BYTES:
        raise UsageError(
            f"{format_bytes(available_bytes)} of RAM are available, and measuring takes at least "
            f"{format_bytes(4 * _LEAST_BYTES)}; end other programs"
        )
    return TuneEffort(Effort(weight_bytes=nbytes // 8), effort_within(nbytes))


def measure_machine(
    device_name: str,
    threads: int,
    folder: Path,
    on_stage: Callable[[str, float], None],
    effort: TuneEffort | None = None,
    force: bool = False,
) -> Calibrated:
    """Measure this machine with `threads` threads and the device of that name ("auto", "cpu", "cuda:1", ...).

    `folder` is on the disk to measure, and gets temporary files. `on_stage(what, share)` is told what comes next, and
    which share of everything is done. Raises DeviceUnavailableError for a GPU that was asked for, UsageError, also
    where other processes keep the CPUs busy; with `force` it measures all the same, and the profile says so.
    """
    ram = read_ram(read_limits())
    if ram is None:
        raise UsageError("the kernel does not tell how much RAM there is (/proc/meminfo), so nothing can be measured")
    effort = effort or choose_effort(ram.available_bytes)
    load = look_at_others()
    is_busy = load is not None and load.is_heavy
    if is_busy and not force:
        raise UsageError(f"{load}: all rates would be too low; end them, or measure all the same with --force")
    done = 0

    def tell(stage: str) -> None:
        nonlocal done
        on_stage(stage, done / _STAGES)
        done += 1

    tell("starting the device")
    device, estimate, notes = _open_device(device_name)
    try:
        with _temporary_folder(folder) as temporary:
            tell("decode steps of small models")
            step = measure_step_costs(temporary, threads, effort.step)
            tell("writing a file to read again")
            disk_file = _write_file(temporary / "disk", effort.disk_bytes)
            profile = calibrate(
                name=machine_name() + ("-simulated" if device is not None and device.simulated else ""),
                threads=threads,
                ram_bytes=ram.total_bytes,
                disk_file=disk_file,
                step=step,
                device=device,
                pageable_bytes_per_s=estimate.gpu.pageable_bytes_per_s if estimate.gpu else 0.0,
                effort=effort.offload,
                on_stage=tell,
            )
    finally:
        if device is not None:
            device.close()
    if load is not None and is_busy:
        profile = replace(profile, busy_cpus=round(load.busy_cpus, 2))
    if profile.estimated:
        notes = (*notes, "the device is simulated: its rates are modelled, so the profile stays an estimate")
    if device is None:
        notes = (*notes, "no bus: the rate of RAM beside it is that of RAM alone")
    return Calibrated(profile, estimate, (*notes, *busy_warning(profile), *_parked(profile)))


def _parked(profile: DeviceProfile) -> tuple[str, ...]:
    """A note where threads wait for each other so long that no rate of the CPU can be trusted."""
    launch_s, threads = profile.cpu.launch_s, profile.cpu.threads
    if launch_s <= _LONGEST_LAUNCH_S:
        return ()
    return (
        f"starting {counted(threads, 'thread')} took {launch_s * 1e3:.1f} ms, where microseconds are usual: "
        "they wait for a core that is in use, and so will plans; measure again with other programs ended"
        + (", or with fewer --threads" if threads > 1 else ""),
    )


def _open_device(name: str) -> tuple[Device | None, DeviceProfile, tuple[str, ...]]:
    """The device, the profile that plans have used with it, and a note where "auto" found none."""
    kind, _, number = name.partition(":")
    if name == "cpu":
        return None, find_profile(CPU_PROFILE), ()
    if name == "simulated":
        estimate = find_profile(SIMULATED_PROFILE)
        assert estimate.gpu is not None
        gpu = estimate.gpu
        rates = SimulatedRates.of(gpu)
        return SimulatedDevice(gpu.vram_bytes, gpu.context_bytes, gpu.workspace_bytes, rates), estimate, ()
    if (name != "auto" and kind != "cuda") or (number and not number.isdecimal()) or name.endswith(":"):
        raise UsageError(f"--device {name}: must be auto, cpu, cuda, cuda:N or simulated")
    from offload.devices.cuda.device import CudaDevice

    try:
        return CudaDevice(int(number or 0)), find_profile(GPU_PROFILE), ()
    except DeviceUnavailableError as error:
        if name != "auto":
            raise
        return None, find_profile(CPU_PROFILE), (f"no usable GPU, only the CPU was measured: {error}",)


@contextmanager
def _temporary_folder(folder: Path) -> Iterator[Path]:
    """A new folder in `folder`, gone afterwards with all that is in it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        temporary = tempfile.TemporaryDirectory(dir=folder, prefix="calibration-")
    except OSError as error:
        raise UsageError(f"{show(folder)}: temporary files cannot be written there: {error.strerror}") from None
    with temporary as name:
        yield Path(name)


def _write_file(path: Path, nbytes: int) -> Path:
    """A file that lies on the disk, not in memory alone."""
    try:
        with path.open("wb") as file:
            for _ in range(0, nbytes, _DISK_PIECE_BYTES):
                file.write(np.random.default_rng(0).bytes(_DISK_PIECE_BYTES))
            os.fsync(file.fileno())
    except OSError as error:
        raise UsageError(
            f"{show(path)}: {format_bytes(nbytes)} to read again cannot be written: {error.strerror}"
        ) from None
    return path
