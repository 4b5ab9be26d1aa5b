"""Steps of a whole model in modelled time: the real runner, ring and streams over a hollow simulated device.

Queueing, the order of the copies and every wait are those of a run; only durations come from the device profile.
For a step of M rows with `depth` tokens in the cache:

    host, one after another
        step_s                                                          before the first level
        island_s * islands * max(1, M / 4)                              before each level, and after the last
        cache bytes / attention_bytes_per_s                             each attention, before the level it comes before
            + M * seen * flops_per_pair / attention_flops_per_s
            where seen = depth + M / 2, or the window, and cache bytes = seen * cache_bytes_per_token; a cache that is
            rewritten at every step adds 2 * cache bytes / ram_bytes_per_s
        launch_s + the sum over its Linears of the longest of           for each group with host columns
            CpuRates.multiply_s(host format, bytes, M)
            bytes / ram_bytes_per_s_beside_bus, if this phase streams
            bytes / disk_bytes_per_s, if they are in their file
        round_trip_s - 2 * copy_s                                       after each wait for the device
    bus, each way one copy at a time, the one that was ready first
        copy_s + bytes / bus_bytes_per_s                                each piece
        copy_s + bytes / bus_back_bytes_per_s                           y of all groups of a level, fp32
    device, one kernel at a time
        copy_s + bytes / bus_bytes_per_s                                x of all groups of a level, fp32
        launches * launch_s + multiply_s, see offload/plan/multiply_time.py
            one for the resident columns of a group that are stored alike, one for each piece

The device reads the activations of a level itself, so they wait for no piece, and the bus is as fast as if it did not.
Nothing is charged for queueing, moving x and collecting y on the host, nor for the sum of what the CPU and the bus
read from RAM.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from mmap import PAGESIZE

import numpy as np

from offload.devices.base import Span
from offload.devices.simulated.device import SimulatedDevice
from offload.devices.simulated.rates import SimulatedRates
from offload.errors import PinningError
from offload.host.base import HostColumns
from offload.machine.profile import CpuRates, DeviceProfile
from offload.plan.cost import host_alone, host_s
from offload.plan.plan import HostTier, LinearPlacement, Plan
from offload.run.runner import LinearRunner
from offload.spec.arrays import FloatArray
from offload.spec.linear import LinearSpec, Storage
from offload.spec.step import StepShape, Workload
from offload.storage.stored_weight import StoredWeight


@dataclass(frozen=True)
class ModelledRun:
    """The virtual seconds of every step, and what host and device did, from the beginning of the first step."""

    step_s: tuple[float, ...]
    spans: tuple[Span, ...]

    @property
    def steady_step_s(self) -> float:
        """The last step: its ring was as full as those of all steps to come."""
        return self.step_s[-1]


def run_modelled(
    plan: Plan,
    levels: Sequence[Sequence[str]],
    step: StepShape,
    profile: DeviceProfile,
    depth: int,
    rows: Sequence[int] = (1, 1, 1, 1),
) -> ModelledRun:
    """Run one step for every number of `rows`; weights take addresses, but no memory.

    `levels` has the names of the Linears that run at each level. Raises OutOfDeviceMemoryError for a plan that the
    GPU of the profile cannot hold.
    """
    gpu, cpu = profile.gpu, profile.cpu
    if gpu is None:
        device = SimulatedDevice(0, hollow=True)
    else:
        rates = SimulatedRates.of(gpu)
        device = SimulatedDevice(gpu.vram_bytes, gpu.context_bytes, gpu.workspace_bytes, rates, hollow=True)
    placements = {placement.linear.name: placement for placement in plan.placements}
    stored = {name: _untouched(p.linear, p.linear.storage) for name, p in placements.items()}
    kept = {
        name: _untouched(p.linear, p.host_blocks or p.linear.storage).columns(p.host.start, p.host.stop)
        for name, p in placements.items()
        if len(p.host)
    }
    host = ModelledHost(device, cpu, plan, kept)
    runner = LinearRunner(levels, plan, stored, device, host, host_weights=kept)
    if runner.warning:
        raise PinningError(runner.warning)  # this would be another plan
    specs = [[placements[name].linear for name in level] for level in levels]
    groups = [level[0].group for level in specs]
    device.start_trace()
    took_s = []
    for count in rows:
        began_s = device.now_s
        device.spend(cpu.step_s, "step")
        *alone, after = host_alone(groups, step, cpu, Workload(depth, count))
        for number, before in enumerate(alone):
            device.spend(before.islands_s, "islands")
            if before.attention_s:
                device.spend(before.attention_s, "attention")
            runner.run(number, *_arrays(specs[number], count))
        device.spend(after.islands_s, "islands")
        took_s.append(device.now_s - began_s)
    spans = (*device.take_trace(), *device.host_spans)
    runner.close()
    return ModelledRun(tuple(took_s), spans)


class ModelledHost:
    """A HostBackend that multiplies nothing, but lets the virtual time pass that it would take."""

    def __init__(self, device: SimulatedDevice, cpu: CpuRates, plan: Plan, weights: Mapping[str, StoredWeight]) -> None:
        """`weights`: the host columns of the Linears of the plan, by name, as the runner gets them."""
        self.device = device
        self._cpu = cpu
        self._prefill_tokens = plan.prefill_tokens
        self._by_memory = {
            id(weights[placement.linear.name].arrays[0].source): placement
            for placement in plan.placements
            if len(placement.host)
        }
        self._streams = {
            prefill: any(len(placement.streamed_in(prefill)) for placement in plan.placements)
            for prefill in (False, True)
        }

    def group(self, columns: Sequence[HostColumns]) -> "ModelledGroup":
        """See HostBackend."""
        placements = [self._by_memory[id(part.weight.arrays[0].source)] for part in columns]
        return ModelledGroup(self, [(p, part.stop - part.start) for p, part in zip(placements, columns, strict=True)])

    def multiply_s(self, placement: LinearPlacement, columns: int, rows: int) -> float:
        """Seconds to multiply columns of one Linear."""
        seconds = host_s(self._cpu, placement, columns, rows, self._streams[0 < self._prefill_tokens <= rows])
        if placement.tier is HostTier.FILE:
            seconds = max(seconds, columns * placement.host_column_bytes / self._cpu.disk_bytes_per_s)
        return seconds

    @property
    def launch_s(self) -> float:
        """Give the time that a group takes besides."""
        return self._cpu.launch_s


class ModelledGroup:
    """Linears that read the same x, as numbers of columns."""

    def __init__(self, host: ModelledHost, parts: Sequence[tuple[LinearPlacement, int]]) -> None:
        self._host = host
        self._parts = tuple(parts)
        self._name = f"host columns of {parts[0][0].linear.group}"

    def multiply(self, x: FloatArray, outputs: Sequence[FloatArray]) -> None:
        """See HostGroup; `outputs` stay as they are."""
        seconds = sum(self._host.multiply_s(placement, columns, len(x)) for placement, columns in self._parts)
        self._host.device.spend(self._host.launch_s + seconds, self._name)


def _arrays(level: Sequence[LinearSpec], rows: int) -> tuple[dict[str, FloatArray], dict[str, FloatArray]]:
    """x by group and y by Linear."""
    x = {linear.group: np.zeros((rows, linear.in_features), np.float32) for linear in level}
    y = {linear.name: np.empty((rows, linear.out_features), np.float32) for linear in level}
    return x, y


def _untouched(linear: LinearSpec, storage: Storage) -> StoredWeight:
    """A weight on pages that it shares with no other, that are never written to, and so never there."""
    nbytes = linear.out_features * storage.column_bytes(linear.in_features)
    block = np.empty(nbytes + 2 * PAGESIZE, np.uint8)
    start = -block.ctypes.data % PAGESIZE
    return StoredWeight.over(block[start : start + nbytes], storage, linear.in_features, linear.out_features)
