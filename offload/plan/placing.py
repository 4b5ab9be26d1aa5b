"""Shares -> `Plan`: fractions rounded to tiles of columns, spread evenly over the layers, and all they take counted."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import ceil

from offload.machine.profile import DeviceProfile
from offload.plan.cost import StepShape, Workload, step_cost
from offload.plan.packing import TILE_COLUMNS, packed_stream_bytes, resident_bytes, staging_bytes, working_memory
from offload.plan.plan import LinearPlacement, Plan, Prediction, Prefill, StreamRing, by_group
from offload.plan.ram_tiers import READ_AHEAD, file_warnings, keep_in_ram, ram_bytes
from offload.plan.replay import replay
from offload.spec.arrays import aligned
from offload.spec.linear import ColumnRange, LinearSpec, WeightFormat
from offload.spec.units import MIB, counted, format_bytes

DEFAULT_DEPTH = 1024  # the depth a plan is made for, in tokens
DEPTHS = (0, DEFAULT_DEPTH, 4096)  # a plan also tells its step at these
CHUNK_TOKENS = 256  # the most tokens of one prefill step
NO_RING = StreamRing(0, 0)
_SLOTS, _MOST_SLOT_BYTES = 4, 4 * MIB
_ROUNDED = "on the GPU, steps of more than 8 tokens round activations to 16 bits before each multiply"


@dataclass(frozen=True)
class Shares:
    """The parts of a Linear's columns that are resident and streamed; what is left is host.

    `prefill` is the part that is streamed in prefill, where that is more.
    """

    resident: float = 0.0
    streamed: float = 0.0
    prefill: float = 0.0


SharesOf = Callable[[LinearSpec], Shares]


@dataclass(frozen=True)
class PlanRequest:
    """Everything a plan depends on.

    `fixed_vram_bytes` is what the device takes before the first weight, by name; `other_ram_bytes` what the model
    takes besides its Linears. `unsupported` names weight formats that the device cannot multiply, with the reason.
    """

    model: str
    linears: Sequence[LinearSpec]
    profile: DeviceProfile
    budget_bytes: int
    fixed_vram_bytes: Mapping[str, int]
    other_ram_bytes: Mapping[str, int]
    step: StepShape
    ram_budget_bytes: int | None = None  # all that `Plan.ram_bytes` may add up to
    ram_is_asked: bool = False
    most_vram_bytes: int = 0  # what the budgets of VRAM and RAM could be raised to; 0: not known, or no more than now
    most_ram_bytes: int = 0
    depth: int = DEFAULT_DEPTH  # tokens in the cache of the step that is made fast
    depths: tuple[int, ...] = DEPTHS  # of the steps that the plan tells
    host_format: WeightFormat | None = None  # what float columns that are not resident are quantised to on load
    pinned_limit_bytes: int | None = None  # the most streamed columns may take
    unsupported: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()  # of what led to the budget and the profile

    def movable(self, linear: LinearSpec) -> bool:
        """Tell whether its columns may be on the device."""
        ours = linear.format.is_float or linear.blocks is not None
        return ours and not linear.host_only_reason and linear.format not in self.unsupported

    def streamable(self, linear: LinearSpec) -> bool:
        """Tell whether they may be streamed too: as the host keeps them."""
        return self.movable(linear) and self.kept_format(linear) not in self.unsupported

    @cached_property
    def ram_is_plenty(self) -> bool:
        """Tell whether the RAM budget holds any placement, so that none has to be counted."""
        if self.ram_budget_bytes is None:
            return True
        whole = [_place_linear(self, linear, Shares(1.0), 0) for linear in self.linears]
        # Every column at once as a host and as a streamed one; x in three formats.
        weights = sum(p.linear.weight_bytes + _kept_bytes(p) + aligned(_kept_bytes(p)) for p in whole)
        steps = 3 * working_memory(whole, CHUNK_TOKENS).pinned_bytes + staging_bytes(whole)
        return weights + steps + sum(self.other_ram_bytes.values()) <= self.ram_budget_bytes

    def kept_format(self, linear: LinearSpec) -> WeightFormat:
        """Name the format that its streamed and host columns are kept in."""
        return linear.format if self.host_format is None or not linear.is_quantisable else self.host_format


def place(request: PlanRequest, shares: SharesOf, ring: StreamRing | None = None, prefill_tokens: int = 0) -> Plan:
    """The plan with these shares, whether or not it fits the budget.

    Without a `ring`, streamed columns get four slots that each hold the largest group's, or 4 MiB of it.
    """
    placements = place_linears(request, shares)
    ring = ring_for(placements) if ring is None else ring
    on_device = any(placement.on_device for placement in placements)
    vram = vram_bytes(request, placements, ring)
    ram = ram_bytes(placements, fixed_ram_bytes(request, placements))
    in_files = file_warnings(placements)
    warnings = (*request.warnings, *_warnings(request, on_device), *in_files)
    rounds = any({p.linear.format, p.host_format} != {WeightFormat.FP32} for p in placements if p.on_device)
    return Plan(
        model=request.model,
        machine=request.profile.to_json(),
        budget_bytes=request.budget_bytes,
        chunk_tokens=CHUNK_TOKENS,
        prefill_tokens=prefill_tokens,
        ring=ring,
        vram_bytes=vram,
        ram_bytes=ram,
        placements=placements,
        predicted=predict(request, placements, ring, request.depth),
        at_depths=tuple(predict(request, placements, ring, depth) for depth in request.depths),
        prefill=_prefill(request, placements, ring, prefill_tokens),
        notes=(*request.notes, *warnings, *((_ROUNDED,) if rounds else ())),
        warnings=warnings if request.budget_bytes else (*request.warnings, *in_files),
        ram_budget_bytes=request.ram_budget_bytes,
        ram_is_asked=request.ram_is_asked,
        read_ahead_bytes=ram[READ_AHEAD],
    )


def place_linears(request: PlanRequest, shares: SharesOf) -> tuple[LinearPlacement, ...]:
    """Round shares to tiles. Linears that are alike differ by a tile at most, the larger ones spread evenly.

    Host columns beyond the RAM budget are left in their files.
    """
    counts: dict[tuple[str, int, int], int] = {}
    placements = []
    for linear in request.linears:
        alike = (linear.kind, linear.in_features, linear.out_features)
        number = counts[alike] = counts.get(alike, -1) + 1
        placements.append(_place_linear(request, linear, shares(linear), number))
    if request.ram_budget_bytes is None or request.ram_is_plenty:
        return tuple(placements)
    return keep_in_ram(placements, fixed_ram_bytes(request, placements), request.ram_budget_bytes)


def fits(request: PlanRequest, placements: Sequence[LinearPlacement], ring: StreamRing) -> bool:
    """Tell whether placements are within both budgets."""
    if sum(vram_bytes(request, placements, ring).values()) > request.budget_bytes:
        return False
    if request.ram_budget_bytes is None or request.ram_is_plenty:
        return True
    return sum(ram_bytes(placements, fixed_ram_bytes(request, placements)).values()) <= request.ram_budget_bytes


def fixed_ram_bytes(request: PlanRequest, placements: Sequence[LinearPlacement]) -> dict[str, int]:
    """Count a plan's bytes of RAM besides host columns, by name. Activations and staging are pinned, as on devices."""
    other = request.other_ram_bytes
    return {
        "pinned weights": packed_stream_bytes(placements),
        **other,
        "activations": other.get("activations", 0) + working_memory(placements, CHUNK_TOKENS).pinned_bytes,
        "staging": staging_bytes(placements),
    }


def vram_bytes(request: PlanRequest, placements: Sequence[LinearPlacement], ring: StreamRing) -> dict[str, int]:
    """Count the placements' bytes on the device, by name; nothing when no column is on it."""
    vram = dict.fromkeys((*request.fixed_vram_bytes, "staging", "activations", "weights"), 0)
    if any(placement.on_device for placement in placements):
        vram |= request.fixed_vram_bytes
        vram |= {
            "staging": ring.nbytes,
            "activations": working_memory(placements, CHUNK_TOKENS).device_bytes,
            "weights": resident_bytes(placements),
        }
    return vram


def predict(request: PlanRequest, placements: Sequence[LinearPlacement], ring: StreamRing, depth: int) -> Prediction:
    """The replayed decode step with `depth` tokens in the cache."""
    walked = replay(step_cost(placements, ring, request.step, request.profile, Workload(depth)), ring)
    return Prediction(walked.step_s, 1 / walked.step_s, walked.bound_by, depth, walked.parts)


def ring_for(placements: Sequence[LinearPlacement]) -> StreamRing:
    """Slots that each hold the largest group's streamed columns, or 4 MiB of them."""
    largest = max((packed_stream_bytes(group) for group in by_group(placements)), default=0)
    if largest == 0:
        return NO_RING
    columns = [aligned(round(p.host_column_bytes)) for p in placements if len(p.streamed)]
    return StreamRing(_SLOTS, min(largest, max([_MOST_SLOT_BYTES, *columns])))


def _prefill(
    request: PlanRequest, placements: Sequence[LinearPlacement], ring: StreamRing, prefill_tokens: int
) -> Prefill:
    work = Workload(0, CHUNK_TOKENS, prefill=0 < prefill_tokens <= CHUNK_TOKENS)
    walked = replay(step_cost(placements, ring, request.step, request.profile, work), ring)
    return Prefill(CHUNK_TOKENS, walked.step_s, CHUNK_TOKENS / walked.step_s, walked.bound_by)


def _place_linear(request: PlanRequest, linear: LinearSpec, shares: Shares, number: int) -> LinearPlacement:
    columns = linear.out_features
    reason = linear.host_only_reason or request.unsupported.get(linear.format, "")
    resident = streamed = prefill = 0
    if request.movable(linear):
        resident = _whole_tiles(columns, shares.resident, number)
        streamed = prefill = resident
        if request.streamable(linear):
            streamed = max(resident, _whole_tiles(columns, shares.resident + shares.streamed, number))
            prefill = max(streamed, _whole_tiles(columns, shares.resident + shares.prefill, number))
        reason = _reason(request, columns, resident, streamed)
    return LinearPlacement(
        linear=linear,
        resident=ColumnRange(0, resident),
        streamed=ColumnRange(resident, streamed),
        host=ColumnRange(streamed, columns),
        reason=reason,
        host_format=request.kept_format(linear),
        prefill_stop=prefill if prefill > streamed else 0,
    )


def _kept_bytes(placement: LinearPlacement) -> int:
    """Bytes of all columns as streamed and host ones are kept."""
    return ceil(placement.linear.out_features * placement.host_column_bytes)


def _whole_tiles(columns: int, share: float, number: int) -> int:
    """Whole tiles in `share` of the columns of the Linear with this number among those alike.

    Together, numbers 0 to n have the whole tiles of n + 1 times the share.
    """
    if share >= 1.0:
        return columns
    tiles = columns * share / TILE_COLUMNS
    return min(columns, (int((number + 1) * tiles) - int(number * tiles)) * TILE_COLUMNS)


def _reason(request: PlanRequest, columns: int, resident: int, on_device: int) -> str:
    if resident == columns:
        return "all columns fit the budget"
    fitting = f"{resident:,} of {columns:,} columns fit the budget"
    if on_device > resident:
        return f"{fitting}; {counted(on_device - resident, 'is', 'are')} faster over the bus"
    if resident:
        return fitting
    return "the budget is 0" if request.budget_bytes == 0 else "the budget pays better elsewhere, or holds no tile"


def _warnings(request: PlanRequest, on_device: bool) -> list[str]:
    notes = []
    if request.budget_bytes and not on_device and not any(request.movable(linear) for linear in request.linears):
        notes.append("no Linear of this model can leave the CPU; the GPU is not used")
    elif request.budget_bytes and not on_device:
        fixed = sum(request.fixed_vram_bytes.values())
        verdict = "holds no weights" if request.budget_bytes < 2 * fixed else "does not make a step faster"
        notes.append(
            f"the budget of {format_bytes(request.budget_bytes)} {verdict}: context and workspace alone take "
            f"{format_bytes(fixed)}, activations come on top, and every use costs a round trip; the GPU is not used"
        )
    host_only = sorted({linear.host_only_reason for linear in request.linears if linear.host_only_reason})
    for reason in host_only:
        names = [linear.name for linear in request.linears if linear.host_only_reason == reason]
        some = names[0] if len(names) == 1 else f"{names[0]}, ..."
        notes.append(f"{counted(len(names), 'Linear stays', 'Linears stay')} on the CPU ({some}): {reason}")
    movable = [linear for linear in request.linears if not linear.host_only_reason]
    formats = {linear.format for linear in movable} | {request.kept_format(linear) for linear in movable}
    notes += [f"{name} Linears stay on the CPU: {why}" for name, why in request.unsupported.items() if name in formats]
    return notes
