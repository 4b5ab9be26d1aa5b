"""What one decode step costs under a plan, from the rates of a device profile. Pure arithmetic.

    step = max( sum over groups of max(t_gpu, t_host) + islands + attention(depth),  streamed bytes / bus rate )

A group's GPU share pays one round trip, its GEMM launches and its bytes at the VRAM rate; its host share one
launch and its bytes at the RAM rate. Streamed bytes cross the bus all the time, so they bound the step as a whole.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from offload.device_profile import DeviceProfile
from offload.plan import LinearPlacement, Prediction


@dataclass(frozen=True)
class StepShape:
    """What a step does besides its Linears."""

    islands: int
    cache_bytes_per_token: int  # read by attention for every token already there
    concat_cache: bool  # True: every step also rewrites the whole cache


def predict(placements: Sequence[LinearPlacement], step: StepShape, profile: DeviceProfile, depth: int) -> Prediction:
    """The predicted decode step with `depth` tokens in the cache. Assumes a GPU where columns are placed on one."""
    parts = {"gpu": 0.0, "ram": 0.0}
    for group in _groups(placements):
        gpu_s, host_s = _group_times(group, profile)
        parts["gpu" if gpu_s > host_s else "ram"] += max(gpu_s, host_s)
    cache_bytes = depth * step.cache_bytes_per_token
    parts["islands"] = profile.cpu.step_s + step.islands * profile.cpu.island_s
    parts["attention"] = cache_bytes / profile.cpu.attention_bytes_per_s
    if step.concat_cache:
        parts["cache copies"] = 2 * cache_bytes / profile.cpu.ram_bytes_per_s
    bus_s = _streamed_bytes(placements) / profile.gpu.bus_bytes_per_s if profile.gpu else 0.0
    walk_s = sum(parts.values())
    step_s = max(walk_s, bus_s)
    bound_by = "bus" if bus_s > walk_s else max(parts, key=lambda name: parts[name])
    return Prediction(step_s, 1 / step_s, bound_by, depth)


def _group_times(group: Iterable[LinearPlacement], profile: DeviceProfile) -> tuple[float, float]:
    host_s = resident_bytes = device_bytes = 0.0
    for placement in group:
        column_bytes = placement.linear.column_bytes
        host_bytes = len(placement.host) * placement.host_column_bytes
        host_s += profile.cpu.multiply_s(placement.host_format, host_bytes, rows=1)
        resident_bytes += len(placement.resident) * column_bytes
        device_bytes += (len(placement.resident) + len(placement.streamed)) * column_bytes
    if host_s:
        host_s += profile.cpu.launch_s
    if not device_bytes or profile.gpu is None:
        return 0.0, host_s
    launches = (resident_bytes > 0) + (device_bytes > resident_bytes)
    gpu = profile.gpu
    return gpu.round_trip_s + launches * gpu.launch_s + device_bytes / gpu.vram_bytes_per_s, host_s


def _streamed_bytes(placements: Iterable[LinearPlacement]) -> float:
    return sum(len(placement.streamed) * placement.linear.column_bytes for placement in placements)


def _groups(placements: Iterable[LinearPlacement]) -> list[list[LinearPlacement]]:
    groups: dict[str, list[LinearPlacement]] = {}
    for placement in placements:
        groups.setdefault(placement.linear.group, []).append(placement)
    return list(groups.values())
