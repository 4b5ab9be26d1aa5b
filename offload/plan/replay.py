"""The replay: one walk over a step's levels with a finite ring of slots, as the runner queues them.

Weights do not depend on activations, so a piece is copied as soon as the bus is free and its slot has been released:

    arrive[n]  = max(arrive[n - 1], released[n - slots]) + copy
    released[n] = max(arrive[n], the GEMM before it) + GEMM

Some steps are walked one after the other, and the last one counts: its ring is as full as a running decoder's.
"""

from dataclasses import dataclass

from offload.plan.cost import LevelCost, StepCost
from offload.plan.plan import StreamRing

_STEPS = 3
_LEAST_S = 1e-9  # so that a model without Linears on a machine without costs has a rate
_STEADY = 1e-3  # relative: rounds of the ring that differ by less are alike
_PARTS = ("islands", "attention", "host", "gpu", "bus", "round trips", "ram", "disk")


@dataclass(frozen=True)
class Replay:
    """A steady step in seconds, and its parts by what the host waited for; the parts add up to the step."""

    step_s: float
    parts: dict[str, float]  # as in `_PARTS`

    @property
    def bound_by(self) -> str:
        """The largest part."""
        return max(self.parts, key=lambda name: self.parts[name])


def replay(cost: StepCost, ring: StreamRing) -> Replay:
    """Walk the levels until the ring runs steadily."""
    slots = _Slots(max(1, ring.slots))
    now_s = began_s = 0.0
    parts: dict[str, float] = {}
    for _ in range(_STEPS):
        began_s = now_s
        parts = dict.fromkeys(_PARTS, 0.0)
        parts["islands"] = max(cost.start_s, _LEAST_S)
        now_s += parts["islands"]
        *before, after = cost.alone
        for alone, level in zip(before, cost.levels, strict=True):
            parts["islands"] += alone.islands_s
            parts["attention"] += alone.attention_s
            now_s += alone.islands_s + alone.attention_s
            gpu_s, waited_s = now_s, 0.0
            if level.on_device:
                gpu_s, waited_s = slots.pass_through(level, now_s + level.trip_s + level.resident_s)
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
        parts["islands"] += after.islands_s
        parts["attention"] += after.attention_s
        now_s += after.islands_s + after.attention_s
    step_s = now_s - began_s
    for name, least_s in (("ram", cost.ram_s), ("disk", cost.disk_s)):
        if least_s > step_s:
            parts[name] += least_s - step_s
            step_s = least_s
    return Replay(step_s, parts)


class _Slots:
    """The slots of a ring while a step is walked: when each was released, and when the last piece arrived."""

    def __init__(self, count: int) -> None:
        self._released = [0.0] * count  # from the slot that is used next on
        self._arrived_s = 0.0

    def pass_through(self, level: LevelCost, gpu_s: float) -> tuple[float, float]:
        """Copy and multiply a level's pieces from `gpu_s` on; when that ends, and how long the GPU waited for the bus.

        As soon as one round of the ring is like the one before, so are all the others but the last.
        """
        rounds, rest = divmod(level.pieces, len(self._released))
        waited_s = last_copied_s = last_multiplied_s = 0.0
        while rounds:
            rounds -= 1
            began_s, arrived_s = gpu_s, self._arrived_s
            gpu_s, round_waited_s = self._round(level, len(self._released), gpu_s)
            waited_s += round_waited_s
            copied_s, multiplied_s = self._arrived_s - arrived_s, gpu_s - began_s
            near_s = _STEADY * multiplied_s
            if abs(copied_s - multiplied_s) <= near_s and (
                abs(copied_s - last_copied_s) <= near_s and abs(multiplied_s - last_multiplied_s) <= near_s
            ):
                self._arrived_s += rounds * copied_s
                self._released = [released_s + rounds * multiplied_s for released_s in self._released]
                gpu_s += rounds * multiplied_s
                waited_s += rounds * round_waited_s
                rounds = 0
            last_copied_s, last_multiplied_s = copied_s, multiplied_s
        gpu_s, round_waited_s = self._round(level, rest, gpu_s)
        return gpu_s, waited_s + round_waited_s

    def _round(self, level: LevelCost, pieces: int, gpu_s: float) -> tuple[float, float]:
        """Let so many pieces through, at most one for each slot."""
        waited_s = 0.0
        for slot in range(pieces):
            self._arrived_s = max(self._arrived_s, self._released[slot]) + level.copy_s
            if self._arrived_s > gpu_s:
                waited_s += self._arrived_s - gpu_s
                gpu_s = self._arrived_s
            gpu_s += level.gemm_s
            self._released[slot] = gpu_s
        self._released = [*self._released[pieces:], *self._released[:pieces]]
        return gpu_s, waited_s
