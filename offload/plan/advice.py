"""Advises: the same plan after one change of settings, and what that would buy."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from math import ceil, floor

from offload.errors import RamBudgetError
from offload.plan.memory import fixed_ram_bytes
from offload.plan.placed_model import PlacedModel
from offload.plan.plan import Advice, HostTier, Plan
from offload.plan.planner import is_searched, make_plan
from offload.plan.ram_tiers import file_bytes, ram_bytes
from offload.plan.request import PlanRequest
from offload.spec.linear import WeightFormat
from offload.spec.units import GIB

_WORTH_TELLING = 1.01
_SIZES_A_GIB = 10  # sizes of RAM are told in tenths of a GiB
_OTHER_PLACEMENT = (
    1.03  # with a device, columns placed otherwise take a little more: staging and activations are pinned
)


def with_advice(request: PlanRequest, plan: Plan) -> Plan:
    """`plan` with what a change would buy, where it is more than nothing; what would keep all in RAM goes first."""
    return replace(plan, advice=tuple(sorted(_advice(request, plan), key=lambda advice: not advice.fits_ram)))


def with_ram_advice(request: PlanRequest, plan: Plan) -> Plan:
    """`plan` with the first change that would keep all in RAM; nothing is planned unless it reads from files now."""
    if not file_bytes(plan.placements):
        return plan
    fitting = (advice for advice in _advice(request, plan) if advice.fits_ram)
    return replace(plan, advice=tuple(islice(fitting, 1)))


def _advice(request: PlanRequest, plan: Plan) -> Iterator[Advice]:
    """Plan after each change, at most four times; `plan` may have been given more RAM than `request` says."""
    request = replace(request, ram_budget_bytes=plan.ram_budget_bytes)
    changes = _changes_for_ram(request, plan) if file_bytes(plan.placements) else _changes(request)
    if not is_searched(request):
        return
    now_s = plan.predicted.decode_step_s
    for change, changed in changes:
        try:
            made = make_plan(changed)
        except RamBudgetError:
            continue
        step_s = made.predicted.decode_step_s
        if now_s / step_s > _WORTH_TELLING:
            yield Advice(change, 1 / step_s, now_s / step_s, fits_ram=not file_bytes(made.placements))


def _changes(request: PlanRequest) -> Iterator[tuple[str, PlanRequest]]:
    if request.budget_bytes + GIB <= request.most_vram_bytes:
        yield "one more GiB of VRAM", replace(request, budget_bytes=request.budget_bytes + GIB)
    if request.host_format is None:
        yield from _quantised(request, WeightFormat.INT8)


def _changes_for_ram(request: PlanRequest, plan: Plan) -> Iterator[tuple[str, PlanRequest]]:
    """Those that may keep in RAM what `plan` reads from files, in the order in which they are recommended."""
    ram_gib = ceil(_ram_bytes_for_all(request, plan) * _SIZES_A_GIB / GIB) / _SIZES_A_GIB
    if ram_gib * GIB <= request.most_ram_bytes:
        yield f"--ram {ram_gib:g}", replace(request, ram_budget_bytes=int(ram_gib * GIB))
    if request.host_format is None:
        yield from _quantised(request, WeightFormat.INT8)
    if request.host_format is not WeightFormat.INT4:
        yield from _quantised(request, WeightFormat.INT4)
    needed_bytes = request.budget_bytes + file_bytes(plan.placements)
    vram_gib = min(ceil(needed_bytes / GIB), floor(request.most_vram_bytes / GIB))
    if vram_gib * GIB > request.budget_bytes:
        yield f"--cuda {vram_gib}", replace(request, budget_bytes=vram_gib * GIB)


def _quantised(request: PlanRequest, host_format: WeightFormat) -> Iterator[tuple[str, PlanRequest]]:
    """`--host-dtype`, where the model has weights to quantise."""
    if any(linear.is_quantisable for linear in request.linears):
        yield f"--host-dtype {host_format}", replace(request, host_format=host_format)


def _ram_bytes_for_all(request: PlanRequest, plan: Plan) -> int:
    """About the RAM that `plan` would take with everything in RAM."""
    in_ram = [
        replace(p, tier=HostTier.RAM, host_format=request.kept_format(p.linear)) if p.tier is HostTier.FILE else p
        for p in plan.placements
    ]
    nbytes = sum(ram_bytes(in_ram, fixed_ram_bytes(request.other_ram_bytes, PlacedModel.of(in_ram))).values())
    return ceil(nbytes * _OTHER_PLACEMENT) if request.budget_bytes else nbytes
