"""Engines of the demo model on devices that fail, its Linears in all three places."""

from typing import Any

from hybrid.engine.engine import Engine
from hybrid.loading.opened_model import OpenedModel
from offload.devices.base import Device
from offload.devices.simulated.device import SimulatedDevice
from offload.observe.timeline import Timeline
from offload.plan.packing import packed_stream_bytes
from offload.plan.placing import place
from offload.plan.plan import Plan
from offload.plan.request import PlanRequest
from offload.plan.shares import Shares, SharesOf
from offload.spec.units import MIB
from tests.device.failing_device import FailingDevice
from tests.engines import engine_on, greedy, read_golden
from tests.parity.test_golden_tokens import DEMO_GOLDEN

GOLDEN = read_golden(DEMO_GOLDEN)
BUDGET_BYTES = 3 * MIB  # resident, streamed and host columns of the demo model's 4.5 MiB
TOKENS = 6


_MADE: list[tuple[PlanRequest, Plan]] = []


def three_ways(request: PlanRequest) -> Plan:
    """As much as fits, a part of every Linear in each place; made once for requests that are equal."""
    for known, plan in _MADE:
        if known == request:
            return plan
    _MADE.append((request, _three_ways(request)))
    return _MADE[-1][1]


def _three_ways(request: PlanRequest) -> Plan:
    for parts in range(20, 0, -1):
        plan = place(request, may_be_pinned(request, 0.02 * parts, 0.015 * parts))
        if plan.total_vram_bytes <= request.budget_bytes:
            return plan
    return place(request, lambda _: Shares())


def may_be_pinned(request: PlanRequest, resident: float, streamed: float) -> SharesOf:
    """These shares, or less is streamed."""
    limit_bytes = request.pinned_limit_bytes
    for parts in range(10, 0, -1):
        shares = Shares(resident, streamed * parts / 10)
        plan = place(request, lambda _, shares=shares: shares)  # type: ignore[misc]
        if limit_bytes is None or packed_stream_bytes(plan.placements) <= limit_bytes:
            return lambda _, shares=shares: shares  # type: ignore[misc]
    return lambda _: Shares(resident)


def engine_for(device: Device, demo: OpenedModel, timeline: Timeline | None = None) -> Engine:
    return engine_on(device, demo, three_ways, BUDGET_BYTES, threads=1, timeline=timeline)


def tokens_of(engine: Engine) -> list[int]:
    return greedy(engine, GOLDEN.prompt_ids, TOKENS)[0]


def columns(plan: Plan) -> tuple[int, int, int]:
    """Count those that are resident, streamed and on the host."""
    ranges = [(len(p.resident), len(p.streamed), len(p.host)) for p in plan.placements]
    return sum(r for r, _, _ in ranges), sum(s for _, s, _ in ranges), sum(h for _, _, h in ranges)


def simulated(**failing: Any) -> FailingDevice:
    """The budget is all the memory there is, so no plan may take more."""
    return FailingDevice(SimulatedDevice(BUDGET_BYTES), **failing)
