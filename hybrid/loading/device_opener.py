"""Open the device of a run, and find out what it takes before the first weight."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

from hybrid.loading.planning import OpenedModel
from hybrid.loading.target import GpuFacts, Target
from offload.devices.base import Device
from offload.devices.cuda.vram_meter import GRANULE_BYTES, VramMeter
from offload.errors import DeviceUnavailableError, OffloadError, OverBudgetError
from offload.machine.budget import Budget, resolve_budget
from offload.machine.profile import DeviceProfile
from offload.plan.request import CHUNK_TOKENS
from offload.run.recovery import DRIVER
from offload.spec.linear import BlockFormat, Layout, LinearSpec


class DeviceOpener:
    """Starts a CUDA device to look at it, and keeps it for the run."""

    def __init__(self, opened: OpenedModel, budget: Budget, on_warm_up: Callable[[], None]) -> None:
        self.vram: VramMeter | None = None  # of a CUDA device
        self._cuda: Device | None = None
        self._opened = opened
        self._budget = budget
        self._on_warm_up = on_warm_up

    def look(self, ordinal: int, _: DeviceProfile) -> GpuFacts:
        """Ask the device for its facts, its fixed costs measured. Raises DeviceUnavailableError."""
        from offload.devices.cuda import nvml
        from offload.devices.cuda.device import CudaDevice

        try:
            device = CudaDevice(ordinal)
        except DeviceUnavailableError:
            nvml.gpu(ordinal)  # where no driver answers, that is the truer reason
            raise
        self._on_warm_up()
        needed_bytes = 0
        try:
            memory, taken_bytes = device.memory(), device.vram.used_bytes()
            # What this process has taken already is part of its budget.
            budget = resolve_budget(self._budget, memory.free_bytes + taken_bytes, memory.total_bytes)
            device.vram.limit_bytes = budget.nbytes
            with suppress(OverBudgetError):  # then no weight fits, and nothing has to be warm
                needed_bytes = budget.nbytes + 1
                device.warm_up(_may_be_multiplied(self._opened), CHUNK_TOKENS)
                needed_bytes = 0
            memory, taken_bytes = device.memory(), device.vram.used_bytes()
        except OffloadError as error:
            device.close()
            raise DeviceUnavailableError(f"{device.name} cannot be warmed up: {error}") from None
        self._cuda, self.vram = device, device.vram
        # What is allocated later may take a granule more each: activations, ring and resident weights.
        needed_bytes = max(needed_bytes, taken_bytes + 3 * GRANULE_BYTES)
        fixed = {**device.fixed_bytes, DRIVER: max(3 * GRANULE_BYTES, needed_bytes - sum(device.fixed_bytes.values()))}
        return GpuFacts(device.name, memory.free_bytes + taken_bytes, memory.total_bytes, fixed)

    def open(self, target: Target) -> Device | None:
        """The device of the target; None for the CPU."""
        if target.device == "cuda":
            assert self.vram is not None
            self.vram.limit_bytes = target.budget.nbytes
            return self._cuda
        if target.device == "cpu":
            return None
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
