"""Predicts the cost of a step's parts under a set of placements, from a device profile's rates. Pure arithmetic.

A step is a walk over levels, one for each group of Linears: first the host alone (islands, attention), then

    device   fetch activations + resident GEMMs + (wait for each streamed piece + its GEMM) + copy back
    host     one launch + the bytes of the host columns at the rate of their format

side by side. `replay.py` walks the levels; here are the durations.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from offload.machine.profile import CpuRates, DeviceProfile, GpuRates
from offload.plan.multiply_time import launches, multiply_s
from offload.plan.placed_model import PlacedModel
from offload.plan.plan import LinearPlacement, StreamRing
from offload.plan.ram_tiers import file_bytes
from offload.spec.linear import BlockFormat, WeightFormat
from offload.spec.step import AttentionWork, StepShape, Workload

ROWS_AN_ISLAND = 4  # rows from which on an island takes longer than for one


@dataclass(frozen=True)
class HostAlone:
    """What the host does before a level, in seconds."""

    islands_s: float
    attention_s: float


@dataclass(frozen=True)
class LevelCost:
    """One group of Linears, in seconds. Pieces of one level are equal."""

    host_s: float
    on_device: bool
    trip_s: float  # activations there and back
    resident_s: float
    pieces: int
    copy_s: float  # one piece over the bus
    gemm_s: float  # one piece


@dataclass(frozen=True)
class StepCost:
    """The levels of a step, and how long what they share is busy at least."""

    start_s: float  # before the first level
    alone: tuple[HostAlone, ...]  # before each level, and after the last
    levels: tuple[LevelCost, ...]
    ram_s: float  # all bytes that are read from RAM, by the CPU and by the bus
    disk_s: float


def step_cost(
    model: PlacedModel, ring: StreamRing, step: StepShape, profile: DeviceProfile, work: Workload
) -> StepCost:
    """The costs of one step of a placed model. Assumes a GPU where columns are placed on one."""
    streams = any(len(p.streamed_in(work.prefill)) for p in model.distinct)
    costs = [_level_cost(group.members, ring, profile, work, streams) for group in model.groups]
    not_resident = sum(group.count * _not_resident_bytes(group.members) for group in model.groups)
    return StepCost(
        start_s=profile.cpu.step_s,
        alone=host_alone(model.names, step, profile.cpu, work),
        levels=tuple(costs[number] for number in model.levels),
        ram_s=not_resident / profile.cpu.ram_bytes_per_s,
        disk_s=model.total(file_bytes) / profile.cpu.disk_bytes_per_s,
    )


def resident_format(placement: LinearPlacement) -> WeightFormat | BlockFormat:
    """Describe how resident columns are stored."""
    return placement.linear.blocks or placement.linear.format


def streamed_format(placement: LinearPlacement) -> WeightFormat | BlockFormat:
    """Describe how streamed columns are kept."""
    return placement.host_blocks or placement.host_format


def host_s(cpu: CpuRates, placement: LinearPlacement, columns: int, rows: int, beside_bus: bool) -> float:
    """Seconds to multiply `columns` host columns, without the launch; a busy bus takes its part of the RAM."""
    nbytes = columns * placement.host_column_bytes
    seconds = cpu.multiply_s(placement.host_format, nbytes, rows)
    return max(seconds, nbytes / cpu.ram_bytes_per_s_beside_bus) if beside_bus else seconds


def _level_cost(
    members: Sequence[LinearPlacement],
    ring: StreamRing,
    profile: DeviceProfile,
    work: Workload,
    beside_bus: bool,
) -> LevelCost:
    cpu, gpu = profile.cpu, profile.gpu
    on_host = sum(host_s(cpu, p, len(p.host_in(work.prefill)), work.rows, beside_bus) for p in members)
    if on_host:
        on_host += cpu.launch_s
    device_columns = sum(len(p.resident) + len(p.streamed_in(work.prefill)) for p in members)
    if not device_columns or gpu is None:
        return LevelCost(on_host, False, 0.0, 0.0, 0, 0.0, 0.0)
    x_bytes = work.rows * members[0].linear.in_features * 4
    y_bytes = work.rows * device_columns * 4
    streamed_bytes = sum(len(p.streamed_in(work.prefill)) * p.host_column_bytes for p in members)
    pieces = -(-int(streamed_bytes) // ring.slot_bytes) if streamed_bytes else 0
    resident_s, launch_s = _multiply_s(gpu, [(p, resident_format(p), len(p.resident)) for p in members], work.rows)
    streamed = [(p, streamed_format(p), len(p.streamed_in(work.prefill))) for p in members]
    streamed_s, piece_launch_s = _multiply_s(gpu, streamed, work.rows)
    return LevelCost(
        host_s=on_host,
        on_device=True,
        trip_s=gpu.round_trip_s + x_bytes / gpu.bus_bytes_per_s + y_bytes / gpu.bus_back_bytes_per_s,
        resident_s=launch_s + resident_s,
        pieces=pieces,
        copy_s=gpu.copy_s + streamed_bytes / pieces / gpu.bus_bytes_per_s if pieces else 0.0,
        gemm_s=piece_launch_s + streamed_s / pieces if pieces else 0.0,
    )


def _not_resident_bytes(members: Sequence[LinearPlacement]) -> float:
    return sum((p.linear.out_features - len(p.resident)) * p.host_column_bytes for p in members)


def _multiply_s(
    gpu: GpuRates, parts: Iterable[tuple[LinearPlacement, WeightFormat | BlockFormat, int]], rows: int
) -> tuple[float, float]:
    """Seconds to multiply so many columns of each Linear, stored so; and seconds to launch that."""
    there = [(stored, columns, p.linear.in_features) for p, stored, columns in parts if columns]
    seconds = sum(multiply_s(gpu, *part, rows) for part in there)
    return seconds, gpu.launch_s * max((launches(stored, rows) for stored, _, _ in there), default=0)


def attention_s(attention: AttentionWork, concat_cache: bool, cpu: CpuRates, work: Workload) -> float:
    """Seconds of one attention, rewriting its cache included.

    Each new token computes with all that it sees. Reading counts once: a block of queries that reads the cache again
    computes for so long that it does not show.
    """
    held = seen = work.depth + work.rows / 2
    if attention.window is not None:
        seen = min(seen, attention.window)
    cache_bytes = seen * attention.cache_bytes_per_token
    seconds = cache_bytes / cpu.attention_bytes_per_s
    seconds += work.rows * seen * attention.flops_per_pair / cpu.attention_flops_per_s
    if concat_cache:
        seconds += 2 * held * attention.cache_bytes_per_token / cpu.ram_bytes_per_s
    return seconds


def host_alone(groups: Sequence[str], step: StepShape, cpu: CpuRates, work: Workload) -> tuple[HostAlone, ...]:
    """What comes before each of these groups of Linears, in running order, and last what comes after all of them."""
    island_s = cpu.island_s * max(1.0, work.rows / ROWS_AN_ISLAND)
    found = [HostAlone(0.0, 0.0)] * (len(groups) + 1)
    numbers = {group: number for number, group in enumerate(groups)}
    islands_s = attended_s = 0.0
    for stage in step.stages:
        islands_s += stage.islands * island_s
        attended_s += sum(attention_s(attention, step.concat_cache, cpu, work) for attention in stage.attentions)
        known = [numbers[group] for group in stage.groups if group in numbers]
        if known:
            found[min(known)] = HostAlone(islands_s, attended_s)
            islands_s = attended_s = 0.0
    found[-1] = HostAlone(islands_s, attended_s)
    return tuple(found)
