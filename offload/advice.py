"""What would help: the same plan with a little more, and what that would buy."""

from collections.abc import Iterator
from dataclasses import replace

from offload.placing import PlanRequest
from offload.plan import Advice, Plan
from offload.planner import make_plan
from offload.specs import WeightFormat
from offload.units import GIB

_WORTH_TELLING = 1.01


def with_advice(request: PlanRequest, plan: Plan) -> Plan:
    """`plan` with what one more GiB of VRAM, and 8 bits outside it, would buy, where it is more than nothing."""
    return replace(plan, advice=tuple(_advice(request, plan)))


def _advice(request: PlanRequest, plan: Plan) -> Iterator[Advice]:
    now_s = plan.predicted.decode_step_s
    for change, changed in _changes(request):
        step_s = make_plan(changed, is_final=False).predicted.decode_step_s
        if now_s / step_s > _WORTH_TELLING:
            yield Advice(change, 1 / step_s, now_s / step_s)


def _changes(request: PlanRequest) -> Iterator[tuple[str, PlanRequest]]:
    gpu = request.profile.gpu
    if gpu is not None and request.budget_bytes + GIB <= gpu.vram_bytes:
        yield "one more GiB of VRAM", replace(request, budget_bytes=request.budget_bytes + GIB)
    if request.host_format is None and any(linear.format.is_float for linear in request.linears):
        yield "--host-dtype int8", replace(request, host_format=WeightFormat.INT8)
