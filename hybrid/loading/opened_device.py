"""The device of a run: opened, warm, and measured before a plan is made."""

from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from hybrid.loading.opened_model import OpenedModel
from hybrid.loading.settings import RunSettings
from hybrid.loading.target import GpuFacts, Target, WantedDevice, target_on_gpu, target_without_gpu, wanted_device
from hybrid.progress import Progress
from offload.devices.base import Device
from offload.devices.cuda.vram_meter import GRANULE_BYTES, VramMeter
from offload.errors import DeviceUnavailableError, OffloadError, OverBudgetError
from offload.machine.budget import Budget, ResolvedBudget, resolve_budget
from offload.plan.request import CHUNK_TOKENS
from offload.run.recovery import DRIVER
from offload.spec.linear import BlockFormat, Layout, LinearSpec, WeightFormat

if TYPE_CHECKING:
    from offload.devices.cuda.device import CudaDevice


@dataclass(frozen=True)
class OpenedDevice:
    """The target of a run, and its device: None for the CPU.

    `vram` measures a CUDA device, also one that is closed as it is not used: its context stays.
    """

    target: Target
    device: Device | None = None
    vram: VramMeter | None = None

    @property
    def unsupported(self) -> dict[str, str]:
        """The formats of weights that the device cannot multiply, with its reason."""
        if self.device is None:
            return {}
        return {str(name): reason for name in WeightFormat if (reason := self.device.supports(name))}

    @property
    def notes(self) -> tuple[str, ...]:
        """A note where the device multiplies only what has been rounded for it."""
        if self.device is None or self.device.input_format(WeightFormat.FP16) is WeightFormat.FP32:
            return ()
        why = self.device.supports(WeightFormat.INT8)
        return (f"activations are rounded to the weights' type before every multiply: {why}",)

    def close(self) -> None:
        """Give back what the device takes. Safe to call twice."""
        if self.device is not None:
            self.device.close()

    def unused(self) -> "OpenedDevice":
        """Close the device, which nothing is planned for."""
        self.close()
        return replace(self, device=None)


def open_device(settings: RunSettings, opened: OpenedModel, progress: Progress) -> OpenedDevice:
    """Open the device that is asked for, or else the GPU that is there, or none.

    Raises UsageError, and DeviceUnavailableError for a GPU that was asked for and cannot be used.
    """
    wanted = wanted_device(settings)
    if wanted.kind == "cuda":
        try:
            return _open_gpu(settings, wanted, opened, progress)
        except DeviceUnavailableError as error:
            wanted = wanted.without_gpu(error)
    target = target_without_gpu(settings, wanted)
    return OpenedDevice(target, _open_simulated(target) if wanted.kind == "simulated" else None)


def _open_gpu(settings: RunSettings, wanted: WantedDevice, opened: OpenedModel, progress: Progress) -> OpenedDevice:
    from offload.devices.cuda import nvml
    from offload.devices.cuda.device import CudaDevice

    try:
        device = CudaDevice(wanted.ordinal)
    except DeviceUnavailableError:
        nvml.gpu(wanted.ordinal)  # where no driver answers, that is the truer reason
        raise
    try:
        progress.on_stage("Warming up the GPU", 0)
        facts, budget = _warm_up(device, settings.vram_budget, opened)
        return OpenedDevice(target_on_gpu(settings, wanted, facts, budget), device, device.vram)
    except BaseException:
        device.close()
        raise


def _warm_up(device: "CudaDevice", asked: Budget, opened: OpenedModel) -> tuple[GpuFacts, ResolvedBudget]:
    """Set the budget, and measure what the device takes before the first weight. Raises DeviceUnavailableError."""
    needed_bytes = 0
    try:
        memory, taken_bytes = device.memory(), device.vram.used_bytes()
        # What this process has taken already is part of its budget.
        budget = resolve_budget(asked, memory.free_bytes + taken_bytes, memory.total_bytes)
        device.vram.limit_bytes = budget.nbytes
        with suppress(OverBudgetError):  # then no weight fits, and nothing has to be warm
            needed_bytes = budget.nbytes + 1
            device.warm_up(_may_be_multiplied(opened), CHUNK_TOKENS)
            needed_bytes = 0
        memory, taken_bytes = device.memory(), device.vram.used_bytes()
    except OffloadError as error:
        raise DeviceUnavailableError(f"{device.name} cannot be warmed up: {error}") from None
    # What is allocated later may take a granule more each: activations, ring and resident weights.
    needed_bytes = max(needed_bytes, taken_bytes + 3 * GRANULE_BYTES)
    fixed = {**device.fixed_bytes, DRIVER: max(3 * GRANULE_BYTES, needed_bytes - sum(device.fixed_bytes.values()))}
    return GpuFacts(device.name, memory.free_bytes + taken_bytes, memory.total_bytes, fixed), budget


def _open_simulated(target: Target) -> Device:
    from offload.devices.simulated.device import SimulatedDevice
    from offload.devices.simulated.rates import SimulatedRates

    gpu = target.profile.gpu
    assert gpu is not None
    # The budget is the simulated device's memory, so that a plan that breaks it fails.
    return SimulatedDevice(target.budget.nbytes, gpu.context_bytes, gpu.workspace_bytes, SimulatedRates.of(gpu))


def _may_be_multiplied(opened: OpenedModel) -> list[LinearSpec]:
    """The Linears that a device may have to multiply, as they are stored and as they are made on load."""
    specs = [linear.spec for linear in opened.linears if not linear.spec.host_only_reason]
    made = opened.host_format
    if made is None:
        return specs
    blocks = BlockFormat.made_on_load(made)
    return specs + [
        replace(
            spec,
            format=made,
            layout=Layout.NK,
            weight_bytes=spec.out_features * blocks.column_bytes(spec.in_features),
            blocks=blocks,
        )
        for spec in specs
        if spec.format.is_float
    ]
