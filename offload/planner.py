"""Decide where the columns go: one fraction for every Linear that can leave the CPU, resident first, the rest host."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from offload.cost_model import StepShape, predict
from offload.device_profile import DeviceProfile
from offload.devices.base import aligned
from offload.packing import activation_bytes, packed_stream_bytes, resident_bytes
from offload.plan import LinearPlacement, Plan, StreamRing
from offload.specs import ColumnRange, LinearSpec
from offload.units import format_bytes

DEFAULT_DEPTH = 1024  # the depth a plan is made for, in tokens
CHUNK_TOKENS = 256  # the most tokens of one prefill step
_TILE_COLUMNS = 16
# Small slots: the activations of a level share the copy engine with the weights, and wait for the copy in flight.
_SLOTS, _MOST_SLOT_BYTES = 2, 8 << 20
_SEARCH_STEPS = 24
_ROUNDED = "on the GPU, activations are rounded to the weights' 16-bit type before each multiply"


@dataclass(frozen=True)
class Shares:
    """The parts of a Linear's columns that are resident and streamed; what is left is host."""

    resident: float = 0.0
    streamed: float = 0.0


@dataclass(frozen=True)
class PlanRequest:
    """Everything a plan depends on.

    `fixed_vram_bytes` is what the device takes before the first weight, by name; `other_ram_bytes` what the model
    takes besides its Linears. `unsupported` names weight formats that the device cannot multiply, with the reason.
    `pinned_limit_bytes` is the most pinned RAM for streamed weights; None where no limit is known.
    """

    model: str
    linears: Sequence[LinearSpec]
    profile: DeviceProfile
    budget_bytes: int
    fixed_vram_bytes: Mapping[str, int]
    other_ram_bytes: Mapping[str, int]
    step: StepShape
    unsupported: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()  # of what led to the budget
    pinned_limit_bytes: int | None = None


def make_plan(request: PlanRequest) -> Plan:
    """Fill the budget: the largest equal share of every Linear that fits, resident; the rest stays on the host."""
    if request.budget_bytes == 0:
        return place(request, lambda _: Shares())
    low, high = 0.0, 1.0
    if _fits(place(request, lambda _: Shares(1.0))):
        low = 1.0
    for _ in range(_SEARCH_STEPS if low < 1.0 else 0):
        middle = (low + high) / 2
        if _fits(place(request, lambda _, share=middle: Shares(share))):  # type: ignore[misc]
            low = middle
        else:
            high = middle
    return place(request, lambda _: Shares(low))


def place(request: PlanRequest, shares: Callable[[LinearSpec], Shares], ring: StreamRing | None = None) -> Plan:
    """The plan with these shares, rounded to tiles of columns, whether or not it fits the budget.

    Without a `ring`, streamed columns get two slots that each hold the largest group's, or 8 MiB of it.
    """
    placements = tuple(_place_linear(request, linear, shares(linear)) for linear in request.linears)
    if request.pinned_limit_bytes is not None:
        placements = _stream_less(placements, request.pinned_limit_bytes)
    on_device = any(placement.on_device for placement in placements)
    ring = _ring(placements) if ring is None else ring
    vram = dict.fromkeys((*request.fixed_vram_bytes, "staging", "activations", "weights"), 0)
    if on_device:
        vram |= request.fixed_vram_bytes
        vram |= {
            "staging": ring.nbytes,
            "activations": activation_bytes(placements, CHUNK_TOKENS),
            "weights": resident_bytes(placements),
        }
    pinned = packed_stream_bytes(placements)
    host = sum(round(len(p.host) * p.host_column_bytes) for p in placements)
    warnings = (*request.warnings, *_warnings(request, on_device))
    rounds = on_device and any(linear.format.is_float and linear.format != "fp32" for linear in request.linears)
    predicted = predict(placements, request.step, request.profile, DEFAULT_DEPTH)
    return Plan(
        model=request.model,
        machine=request.profile.to_json(),
        budget_bytes=request.budget_bytes,
        chunk_tokens=CHUNK_TOKENS,
        ring=ring,
        vram_bytes=vram,
        ram_bytes={"host weights": host, "pinned weights": pinned, **request.other_ram_bytes},
        placements=placements,
        predicted=predicted,
        notes=(*request.notes, *warnings, *((_ROUNDED,) if rounds else ())),
        warnings=warnings if request.budget_bytes else (),
    )


def _fits(plan: Plan) -> bool:
    return plan.total_vram_bytes <= plan.budget_bytes


def _place_linear(request: PlanRequest, linear: LinearSpec, shares: Shares) -> LinearPlacement:
    columns = linear.out_features
    reason = linear.host_only_reason or request.unsupported.get(linear.format, "")
    if reason:
        resident = streamed = 0
    else:
        resident = _whole_tiles(columns, shares.resident)
        streamed = _whole_tiles(columns, shares.resident + shares.streamed) - resident
    on_device = resident + streamed
    if not reason:
        reason = _reason(request, columns, on_device)
    return LinearPlacement(
        linear=linear,
        resident=ColumnRange(0, resident),
        streamed=ColumnRange(resident, on_device),
        host=ColumnRange(on_device, columns),
        reason=reason,
        host_format=linear.format,
    )


def _stream_less(placements: Iterable[LinearPlacement], limit_bytes: int) -> tuple[LinearPlacement, ...]:
    """The streamed columns of as many Linears as fit into so much pinned RAM; those of the others become host."""
    kept = []
    for placement in placements:
        pinned_bytes = aligned(round(len(placement.streamed) * placement.linear.column_bytes))
        if pinned_bytes > limit_bytes:
            kept.append(_without_streaming(placement))
        else:
            kept.append(placement)
            limit_bytes -= pinned_bytes
    return tuple(kept)


def _without_streaming(placement: LinearPlacement) -> LinearPlacement:
    resident, columns = placement.resident.stop, placement.linear.out_features
    return replace(
        placement,
        streamed=ColumnRange(resident, resident),
        host=ColumnRange(resident, columns),
        reason="no pinned RAM is left for streamed columns",
    )


def _whole_tiles(columns: int, share: float) -> int:
    """Whole tiles in `share` of the columns; everything only when all was asked for."""
    if share >= 1.0:
        return columns
    return int(columns * share) // _TILE_COLUMNS * _TILE_COLUMNS


def _reason(request: PlanRequest, columns: int, on_device: int) -> str:
    if on_device == columns:
        return "all columns fit the budget"
    if on_device:
        return f"{on_device} of {columns} columns fit the budget"
    return "the budget is 0" if request.budget_bytes == 0 else "no tile of columns fits the budget"


def _ring(placements: Sequence[LinearPlacement]) -> StreamRing:
    groups: dict[str, list[LinearPlacement]] = {}
    for placement in placements:
        groups.setdefault(placement.linear.group, []).append(placement)
    largest = max((packed_stream_bytes(group) for group in groups.values()), default=0)
    columns = [aligned(round(p.linear.column_bytes)) for p in placements if len(p.streamed)]
    return StreamRing(slots=_SLOTS if columns else 0, slot_bytes=min(largest, max([_MOST_SLOT_BYTES, *columns])))


def _warnings(request: PlanRequest, on_device: bool) -> list[str]:
    notes = []
    movable = any(
        not linear.host_only_reason and linear.format not in request.unsupported for linear in request.linears
    )
    if request.budget_bytes and not on_device and not movable:
        notes.append("no Linear of this model can leave the CPU; the GPU is not used")
    elif request.budget_bytes and not on_device:
        fixed = sum(request.fixed_vram_bytes.values())
        notes.append(
            f"the budget of {format_bytes(request.budget_bytes)} holds no weights: context and workspace alone take "
            f"{format_bytes(fixed)}, activations come on top; the GPU is not used"
        )
    host_only = sorted({linear.host_only_reason for linear in request.linears if linear.host_only_reason})
    for reason in host_only:
        names = [linear.name for linear in request.linears if linear.host_only_reason == reason]
        notes.append(f"{len(names)} Linears stay on the CPU ({names[0]}, ...): {reason}")
    notes += [f"{name} Linears stay on the CPU: {reason}" for name, reason in request.unsupported.items()]
    return notes
