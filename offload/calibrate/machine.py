"""Measure a machine into a device profile: the part that knows nothing of models."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from offload.calibrate.attention import attention_rates
from offload.calibrate.device import DeviceEffort, DeviceMeter
from offload.calibrate.disk import disk_read_rate
from offload.calibrate.host import HostRates, Multiplier, launch_time, multipliers, multiply_rates
from offload.devices.base import Device
from offload.host.backend import NumbaBackend
from offload.machine.profile import CpuRates, DeviceProfile, GpuRates
from offload.spec.linear import Layout, WeightFormat

_IN_FEATURES = 4096


@dataclass(frozen=True)
class Effort:
    """The effort of measuring. `weight_bytes` is the size of a weight: many times what caches hold."""

    weight_bytes: int = 128 << 20
    rounds: int = 9
    longest_s: float = 6.0  # of all rounds together, on a machine that is busy
    disk_s: float = 1.0
    device: DeviceEffort | None = None  # None: what suits the device


@dataclass(frozen=True)
class StepCosts:
    """The cost of a decode step besides its Linears and attention; see the fields of `CpuRates`."""

    step_s: float
    island_s: float


def calibrate(
    name: str,
    threads: int,
    ram_bytes: int,
    disk_file: Path,
    step: StepCosts,
    device: Device | None,
    pageable_bytes_per_s: float,
    effort: Effort,
    on_stage: Callable[[str], None],
) -> DeviceProfile:
    """The profile of this machine with `threads` threads and, where there is one, `device`.

    `step` is measured elsewhere. `disk_file` is read from front to back for a second. `pageable_bytes_per_s` stands for
    what a simulated device does not model. With a simulated device the profile stays estimated: its rates are what was
    modelled, and no machine has them. `on_stage` is told what is measured next. Raises OSError for the file,
    OutOfDeviceMemoryError.
    """
    on_stage("disk")
    disk_bytes_per_s = disk_read_rate(disk_file, effort.disk_s)
    on_stage("compiling the CPU kernels")
    backend = NumbaBackend(threads)
    backend.warm_up([(weight_format, Layout.NK) for weight_format in WeightFormat if weight_format.is_float])
    on_stage("multiplying on the CPU")
    weights = multipliers(backend, effort.weight_bytes, _IN_FEATURES)
    host = HostRates(multiply_rates(weights, effort.rounds, effort.longest_s), launch_time(backend))
    on_stage("attending on the CPU")
    attention = attention_rates(backend, effort.weight_bytes, effort.rounds, effort.longest_s)
    gpu, share = None, 1.0
    if device is not None:
        on_stage(f"measuring {device.name}")
        gpu, share = _measure_device(device, weights[WeightFormat.FP16], pageable_bytes_per_s, effort.device)
    return DeviceProfile(
        name=name,
        estimated=device is not None and device.simulated,
        cpu=CpuRates(
            threads=threads,
            ram_bytes=ram_bytes,
            ram_bytes_per_s=host.ram_bytes_per_s,
            ram_bytes_per_s_beside_bus=share * host.ram_bytes_per_s,
            disk_bytes_per_s=disk_bytes_per_s,
            multiply_bytes_per_s=host.multiply_bytes_per_s,
            attention_bytes_per_s=attention.bytes_per_s,
            attention_flops_per_s=attention.flops_per_s,
            island_s=step.island_s,
            launch_s=host.launch_s,
            step_s=step.step_s,
        ),
        gpu=gpu,
    )


def _measure_device(
    device: Device, multiplier: Multiplier, pageable_bytes_per_s: float, effort: DeviceEffort | None
) -> tuple[GpuRates, float]:
    """The device's rates, and the share of RAM's rate that the host keeps beside its copies."""
    meter = DeviceMeter(device, effort)
    try:
        return meter.rates(pageable_bytes_per_s), meter.ram_share_beside_bus(multiplier)
    finally:
        meter.close()
