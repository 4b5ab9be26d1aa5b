"""The replay: one walk over a step's levels with a finite ring of slots, as the runner queues them.

Weights do not depend on activations, so a piece is copied as soon as the bus is free and its slot has been released:

    arrive[n]  = max(arrive[n - 1], released[n - slots]) + copy
    released[n] = max(arrive[n], the GEMM before it) + GEMM

Some steps are walked one after the other, and the last one counts: its ring is as full as a running decoder's.
"""

from dataclasses import dataclass

from offload.plan.cost import StepCost
from offload.plan.plan import StreamRing

_STEPS = 3
_LEAST_S = 1e-9  # so that a model without Linears on a machine without costs has a rate


@dataclass(frozen=True)
class Replay:
    """A steady step in seconds, and its parts by what the host waited for; the parts add up to the step."""

    step_s: float
    parts: dict[str, float]  # "islands", "attention", "host", "gpu", "bus", "round trips", "ram", "disk"

    @property
    def bound_by(self) -> str:
        """The largest part."""
        return max(self.parts, key=lambda name: self.parts[name])


def replay(cost: StepCost, ring: StreamRing) -> Replay:
    """Walk the levels until the ring runs steadily."""
    released = [0.0] * max(1, ring.slots)
    piece, arrived_s, now_s, began_s = 0, 0.0, 0.0, 0.0
    parts: dict[str, float] = {}
    for _ in range(_STEPS):
        began_s = now_s
        parts = dict.fromkeys(("islands", "attention", "host", "gpu", "bus", "round trips", "ram", "disk"), 0.0)
        parts["islands"] = max(cost.start_s, _LEAST_S)
        now_s += parts["islands"]
        for level in cost.levels:
            parts["islands"] += level.islands_s
            parts["attention"] += level.attention_s
            now_s += level.islands_s + level.attention_s
            gpu_s = now_s + level.trip_s + level.resident_s if level.on_device else now_s
            waited_s = 0.0
            for _ in range(level.pieces):
                slot = piece % len(released)
                arrived_s = max(arrived_s, released[slot]) + level.copy_s
                if arrived_s > gpu_s:
                    waited_s += arrived_s - gpu_s
                    gpu_s = arrived_s
                gpu_s += level.gemm_s
                released[slot] = gpu_s
                piece += 1
            host_end_s = now_s + level.host_s
            if gpu_s > host_end_s:
                trip_s = min(level.trip_s, gpu_s - now_s)
                parts["round trips"] += trip_s
                parts["bus"] += waited_s
                parts["gpu"] += gpu_s - now_s - trip_s - waited_s
                now_s = gpu_s
            else:
                parts["host"] += level.host_s
                now_s = host_end_s
    step_s = now_s - began_s
    for name, least_s in (("ram", cost.ram_s), ("disk", cost.disk_s)):
        if least_s > step_s:
            parts[name] += least_s - step_s
            step_s = least_s
    return Replay(step_s, parts)
