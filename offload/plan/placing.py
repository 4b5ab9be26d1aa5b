"""Shares -> `Plan`: every Linear placed, all that takes counted, and the steps replayed."""

from dataclasses import dataclass

from offload.plan.cost import step_cost
from offload.plan.memory import fixed_ram_bytes, vram_bytes
from offload.plan.packing import packed_stream_bytes
from offload.plan.placed_model import PlacedModel
from offload.plan.placer import Placer
from offload.plan.plan import Plan, Prediction, Prefill, StreamRing
from offload.plan.ram_tiers import READ_AHEAD, file_warnings, ram_bytes
from offload.plan.replay import replay
from offload.plan.request import CHUNK_TOKENS, PlanRequest
from offload.plan.shares import ModelShares, SharesOf
from offload.spec.arrays import aligned
from offload.spec.linear import WeightFormat
from offload.spec.step import Workload
from offload.spec.units import MIB, counted, format_bytes

NO_RING = StreamRing(0, 0)
_SLOTS, _MOST_SLOT_BYTES = 4, 4 * MIB
_ROUNDED = "on the GPU, steps of more than 8 tokens round activations to 16 bits before each multiply"


@dataclass(frozen=True, eq=False)
class Placement:
    """A model as placed, and how steps stream: in decode, and from `prefill_tokens` on as prefill; 0: never so."""

    model: PlacedModel
    ring: StreamRing = NO_RING
    prefill_tokens: int = 0


def place(request: PlanRequest, shares: SharesOf, ring: StreamRing | None = None, prefill_tokens: int = 0) -> Plan:
    """The plan with these shares, whether or not it fits the budget.

    Without a `ring`, streamed columns get four slots that each hold the largest group's, or 4 MiB of it.
    """
    model = Placer(request).place(ModelShares.of(request.linears, shares))
    return plan_of(request, Placement(model, ring_for(model) if ring is None else ring, prefill_tokens))


def plan_of(request: PlanRequest, placement: Placement) -> Plan:
    """The plan of a placement: all that it takes, and what its steps should cost."""
    model, ring = placement.model, placement.ring
    ram = ram_bytes(model.rows, fixed_ram_bytes(request.other_ram_bytes, model))
    placements = model.placements
    in_files = file_warnings(placements)
    warnings = (*request.warnings, *_warnings(request, model.on_device), *in_files)
    rounds = any({p.linear.format, p.host_format} != {WeightFormat.FP32} for p in model.distinct if p.on_device)
    return Plan(
        model=request.model,
        machine=request.profile.to_json(),
        budget_bytes=request.budget_bytes,
        chunk_tokens=CHUNK_TOKENS,
        prefill_tokens=placement.prefill_tokens,
        ring=ring,
        vram_bytes=vram_bytes(request, model, ring),
        ram_bytes=ram,
        placements=placements,
        predicted=predict(request, model, ring, request.depth),
        at_depths=tuple(predict(request, model, ring, depth) for depth in request.depths),
        prefill=_prefill(request, placement),
        notes=(*request.notes, *warnings, *((_ROUNDED,) if rounds else ())),
        warnings=warnings if request.budget_bytes else (*request.warnings, *in_files),
        ram_budget_bytes=request.ram_budget_bytes,
        ram_is_asked=request.ram_is_asked,
        read_ahead_bytes=ram[READ_AHEAD],
    )


def predict(request: PlanRequest, model: PlacedModel, ring: StreamRing, depth: int) -> Prediction:
    """The replayed decode step with `depth` tokens in the cache."""
    walked = replay(step_cost(model, ring, request.step, request.profile, Workload(depth)), ring)
    return Prediction(walked.step_s, 1 / walked.step_s, walked.bound_by, depth, walked.parts)


def ring_for(model: PlacedModel) -> StreamRing:
    """Slots that each hold the largest group's streamed columns, or 4 MiB of them."""
    largest = max((packed_stream_bytes(group.members) for group in model.groups), default=0)
    if largest == 0:
        return NO_RING
    columns = [aligned(round(p.host_column_bytes)) for p in model.distinct if len(p.streamed)]
    return StreamRing(_SLOTS, min(largest, max([_MOST_SLOT_BYTES, *columns])))


def _prefill(request: PlanRequest, placement: Placement) -> Prefill:
    work = Workload(0, CHUNK_TOKENS, prefill=0 < placement.prefill_tokens <= CHUNK_TOKENS)
    walked = replay(step_cost(placement.model, placement.ring, request.step, request.profile, work), placement.ring)
    return Prefill(CHUNK_TOKENS, walked.step_s, CHUNK_TOKENS / walked.step_s, walked.bound_by)


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
