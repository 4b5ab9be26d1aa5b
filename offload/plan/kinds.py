"""Groups of Linears that look alike, as the MILP sees them, and its answer as shares of every Linear."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import chain
from operator import itemgetter

import numpy as np

from offload.plan.cost import host_alone, host_s, resident_format, streamed_format
from offload.plan.milp import GroupKind, Limits, PlacementMilp, Solution
from offload.plan.multiply_time import launches, multiply_s
from offload.plan.packing import TILE_COLUMNS, working_memory
from offload.plan.placer import Placer
from offload.plan.plan import LinearPlacement, StreamRing
from offload.plan.request import CHUNK_TOKENS
from offload.plan.shares import ModelShares
from offload.spec.linear import BlockFormat, ColumnRange, WeightFormat
from offload.spec.step import Workload

Group = tuple[int, ...]  # the numbers of its Linears
MOST_KINDS = 16  # models have five or so; more are put together


class Kinds:
    """The kinds of groups of a request, for steps of one `Workload`. The first group of a kind stands for all."""

    def __init__(self, placer: Placer, work: Workload) -> None:
        self._placer = placer
        self._request = request = placer.request
        self._work = work
        # All as if in RAM: the MILP itself decides how much of them is not.
        on_host = placer.in_ram(ModelShares.equal(placer.count))
        self._on_host = on_host.placements
        *alone, _ = host_alone(on_host.names, request.step, request.profile.cpu, work)
        before_s = {
            group: before.islands_s + before.attention_s for group, before in zip(placer.groups, alone, strict=True)
        }
        alike: dict[tuple[object, ...], list[Group]] = {}
        for group, before in zip(placer.groups, alone, strict=True):
            sorts = tuple(placer.sorts[number] for number in group)
            alike.setdefault((*sorts, before.attention_s > 0), []).append(group)
        self.count = len(alike)
        kinds = list(alike.values())
        self.groups = kinds if len(kinds) <= MOST_KINDS else self._by_size(kinds)
        self._before_s = [sum(before_s[group] for group in groups) / len(groups) for groups in self.groups]
        self._kind_of = np.zeros(placer.count, np.intp)
        for number, groups in enumerate(self.groups):
            self._kind_of[list(chain.from_iterable(groups))] = number

    def milp(
        self,
        vram_bytes: float,
        ring: StreamRing,
        resident: ModelShares | None = None,
        ram_bytes: float | None = None,
        least_activation_bytes: int = 0,
    ) -> PlacementMilp:
        """The MILP with so much VRAM for resident columns and activations.

        With `resident` the resident shares and at least the streamed ones are given. `ram_bytes` may be taken by host
        and streamed columns; host columns beyond it are read from files.
        """
        request = self._request
        gpu = request.profile.gpu
        assert gpu is not None
        kinds = [self._kind(number, ring, resident) for number in range(len(self.groups))]
        immovable = (p for p in self._on_host if not request.movable(p.linear))
        immovable_bytes = sum(p.linear.out_features * p.host_column_bytes for p in immovable)
        pinned_bytes: float | None = request.pinned_limit_bytes
        if ram_bytes is not None:
            left_bytes = max(0.0, ram_bytes - immovable_bytes)
            pinned_bytes = left_bytes if pinned_bytes is None else min(pinned_bytes, left_bytes)
        limits = Limits(
            vram_bytes=vram_bytes,
            pinned_bytes=pinned_bytes if ring.slots else 0.0,
            ram_bytes=ram_bytes,
            immovable_bytes=immovable_bytes,
            ring_s=ring.nbytes / gpu.bus_bytes_per_s,
            ram_bytes_per_s=request.profile.cpu.ram_bytes_per_s,
            disk_bytes_per_s=request.profile.cpu.disk_bytes_per_s,
            start_s=request.profile.cpu.step_s,
            least_activation_bytes=least_activation_bytes,
        )
        return PlacementMilp(kinds, limits)

    def shares(self, solution: Solution) -> ModelShares:
        """The shares of every Linear."""
        resident, streamed = np.array(solution.shares, np.float64).reshape(-1, 2)[self._kind_of].T
        return ModelShares(resident, streamed, np.zeros(len(resident)))

    def _kind(self, number: int, ring: StreamRing, given: ModelShares | None) -> GroupKind:
        request, rows = self._request, self._work.rows
        cpu, gpu = request.profile.cpu, request.profile.gpu
        assert gpu is not None
        groups = self.groups[number]
        members = [self._on_host[i] for i in groups[0]]
        movable = [p for p in members if request.movable(p.linear)]
        immovable = [p for p in members if not request.movable(p.linear)]
        wanted = next((i for i in groups[0] if request.movable(request.linears[i])), None) if given else None
        nbytes = sum(p.linear.weight_bytes for p in movable)
        host_nbytes = sum(p.linear.out_features * p.host_column_bytes for p in movable)
        streams = ring.slots > 0

        def on_host_s(placements: Sequence[LinearPlacement]) -> float:
            return sum(host_s(cpu, p, p.linear.out_features, rows, streams) for p in placements)

        def on_device_s(stored: Callable[[LinearPlacement], WeightFormat | BlockFormat]) -> float:
            return sum(multiply_s(gpu, stored(p), p.linear.out_features, p.linear.in_features, rows) for p in movable)

        x_s = rows * members[0].linear.in_features * 4 / gpu.bus_bytes_per_s
        y_s = rows * sum(p.linear.out_features for p in movable) * 4 / gpu.bus_back_bytes_per_s
        pieces = host_nbytes / ring.slot_bytes if streams else 0.0
        launches_a_piece = max((launches(streamed_format(p), rows) for p in movable), default=0)
        # Scratch grows with the columns as well, but what a tile takes is the least.
        a_tile = working_memory(_resident(movable, TILE_COLUMNS), CHUNK_TOKENS)
        return GroupKind(
            count=len(groups),
            nbytes=nbytes,
            host_nbytes=host_nbytes,
            before_s=self._before_s[number],
            host_s=on_host_s(movable),
            immovable_s=on_host_s(immovable),
            resident_s=on_device_s(resident_format) + y_s,
            streamed_s=on_device_s(streamed_format) + y_s + pieces * launches_a_piece * gpu.launch_s,
            trip_s=gpu.round_trip_s + gpu.launch_s + x_s,
            bus_s=host_nbytes / gpu.bus_bytes_per_s + pieces * gpu.copy_s,
            x_bytes=a_tile.device_bytes,
            y_bytes=working_memory(_resident(movable), CHUNK_TOKENS).y_bytes,
            least_streamed=0.0 if given is None or wanted is None else float(given.streamed[wanted]),
            fixed_resident=None if given is None or wanted is None else float(given.resident[wanted]),
        )

    def _by_size(self, kinds: Sequence[Sequence[Group]]) -> list[list[Group]]:
        """Few kinds of about equal bytes, each of groups of about one size; the middle one comes first.

        Groups without columns that may be on the device are one kind.
        """
        linears = self._request.linears

        def nbytes(group: Group) -> int:
            return sum(linears[number].weight_bytes for number in group if self._request.movable(linears[number]))

        found: dict[int | None, list[Group]] = {}
        groups = sorted(((nbytes(group), group) for kind in kinds for group in kind), key=itemgetter(0))
        total, passed = max(1, sum(size for size, _ in groups)), 0
        for size, group in groups:
            number = (2 * passed + size) * (MOST_KINDS - 1) // (2 * total) if size else None
            found.setdefault(number, []).append(group)
            passed += size
        return [[kind[len(kind) // 2], *kind[: len(kind) // 2], *kind[len(kind) // 2 + 1 :]] for kind in found.values()]


def _resident(placements: Sequence[LinearPlacement], most: int | None = None) -> list[LinearPlacement]:
    """The placements with all columns resident, or that many of the first."""
    chosen = placements if most is None else placements[:1]
    made = []
    for placement in chosen:
        columns = placement.linear.out_features
        held = columns if most is None else min(most, columns)
        ranges = ColumnRange(0, held), ColumnRange(held, held), ColumnRange(held, columns)
        made.append(replace(placement, resident=ranges[0], streamed=ranges[1], host=ranges[2]))
    return made
