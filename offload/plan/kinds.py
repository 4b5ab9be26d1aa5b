"""Groups of Linears that look alike, as the MILP sees them, and its answer as shares of every Linear."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from operator import itemgetter

from offload.plan.cost import Workload, host_s, resident_format, step_cost, streamed_format
from offload.plan.milp import GroupKind, Limits, PlacementMilp, Solution
from offload.plan.multiply_time import launches, multiply_s
from offload.plan.packing import TILE_COLUMNS, working_memory
from offload.plan.placing import CHUNK_TOKENS, NO_RING, PlanRequest, Shares, SharesOf, place_linears
from offload.plan.plan import LinearPlacement, StreamRing, by_group
from offload.spec.linear import BlockFormat, ColumnRange, LinearSpec, WeightFormat

_Key = tuple[object, ...]
_Groups = dict[_Key, list[list[LinearPlacement]]]
MOST_KINDS = 16  # models have five or so; more are put together


class Kinds:
    """The kinds of groups of a request, for steps of one `Workload`."""

    def __init__(self, request: PlanRequest, work: Workload | None = None) -> None:
        self._request = request
        self._work = work or Workload(request.depth)
        # All as if in RAM: the MILP itself decides how much of them is not.
        on_host = place_linears(replace(request, ram_budget_bytes=None), lambda _: Shares())
        cost = step_cost(on_host, NO_RING, request.step, request.profile, self._work)
        alike: _Groups = {}
        before_s: dict[str, float] = {}
        for members, level in zip(by_group(on_host), cost.levels, strict=True):
            key: _Key = tuple(
                (q.kind, q.in_features, q.out_features, q.format, q.layout, q.blocks)
                for q in (p.linear for p in members)
            )
            alike.setdefault(key, []).append(members)
            before_s[members[0].linear.group] = level.islands_s + level.attention_s
        self.count = len(alike)
        self._groups = alike if len(alike) <= MOST_KINDS else _by_size(request, alike)
        names = {key: [members[0].linear.group for members in groups] for key, groups in self._groups.items()}
        self._key_of = {group: key for key, groups in names.items() for group in groups}
        self._before_s = {key: sum(before_s[group] for group in groups) / len(groups) for key, groups in names.items()}

    @property
    def movable(self) -> list[list[LinearSpec]]:
        """The Linears of each kind that may be on the device; kinds without any are left out."""
        found = []
        for groups in self._groups.values():
            linears = [placement.linear for members in groups for placement in members]
            found.append([linear for linear in linears if self._request.movable(linear)])
        return [linears for linears in found if linears]

    def milp(
        self,
        vram_bytes: float,
        ring: StreamRing,
        resident: SharesOf | None = None,
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
        kinds = [self._kind(key, groups, ring, resident) for key, groups in self._groups.items()]
        immovable = [p for groups in self._groups.values() for g in groups for p in g if not request.movable(p.linear)]
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

    def shares(self, solution: Solution) -> SharesOf:
        """The shares of every Linear."""
        by_key = dict(zip(self._groups, solution.shares, strict=True))

        def of(linear: LinearSpec) -> Shares:
            resident, streamed = by_key[self._key_of[linear.group]]
            return Shares(resident, streamed)

        return of

    def _kind(
        self, key: _Key, groups: Sequence[Sequence[LinearPlacement]], ring: StreamRing, given: SharesOf | None
    ) -> GroupKind:
        request, rows = self._request, self._work.rows
        cpu, gpu = request.profile.cpu, request.profile.gpu
        assert gpu is not None
        members = groups[0]
        movable = [p for p in members if request.movable(p.linear)]
        immovable = [p for p in members if not request.movable(p.linear)]
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
        wanted = given(movable[0].linear) if given and movable else None
        # Scratch grows with the columns as well, but what a tile takes is the least.
        a_tile = working_memory(_resident(movable, TILE_COLUMNS), CHUNK_TOKENS)
        return GroupKind(
            count=len(groups),
            nbytes=nbytes,
            host_nbytes=host_nbytes,
            before_s=self._before_s[key],
            host_s=on_host_s(movable),
            immovable_s=on_host_s(immovable),
            resident_s=on_device_s(resident_format) + y_s,
            streamed_s=on_device_s(streamed_format) + y_s + pieces * launches_a_piece * gpu.launch_s,
            trip_s=gpu.round_trip_s + gpu.launch_s + x_s,
            bus_s=host_nbytes / gpu.bus_bytes_per_s + pieces * gpu.copy_s,
            x_bytes=a_tile.device_bytes,
            y_bytes=working_memory(_resident(movable), CHUNK_TOKENS).y_bytes,
            least_streamed=wanted.streamed if wanted else 0.0,
            fixed_resident=wanted.resident if wanted else None,
        )


def _by_size(request: PlanRequest, alike: _Groups) -> _Groups:
    """Few kinds of about equal bytes, each of groups of about one size; the middle one, which is first, stands for all.

    Groups without columns that may be on the device are one kind.
    """

    def nbytes(members: Sequence[LinearPlacement]) -> int:
        return sum(p.linear.weight_bytes for p in members if request.movable(p.linear))

    found: _Groups = {}
    groups = sorted(((nbytes(members), members) for kind in alike.values() for members in kind), key=itemgetter(0))
    total, passed = max(1, sum(size for size, _ in groups)), 0
    for size, members in groups:
        number = (2 * passed + size) * (MOST_KINDS - 1) // (2 * total) if size else None
        found.setdefault((number,), []).append(members)
        passed += size
    return {
        key: [kind[len(kind) // 2], *kind[: len(kind) // 2], *kind[len(kind) // 2 + 1 :]] for key, kind in found.items()
    }


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
