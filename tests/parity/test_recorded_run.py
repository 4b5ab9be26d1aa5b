"""Records of a run, with the demo model on a simulated device."""

import pytest

from hybrid.loading.open_engine import load
from hybrid.loading.planning import plan_request
from hybrid.loading.settings import DEMO_MODEL, RunSettings
from hybrid.loading.target import choose_target, look_in_profile
from offload.devices.simulated.device import SimulatedDevice
from offload.observe.op_times import BETWEEN, op_times, settled
from offload.observe.timeline import DECODE, Timeline
from offload.plan.placing import place
from offload.plan.shares import Shares
from offload.run.recovery import Replanner
from tests.engines import open_settings

LAYERS, STEPS = 6, 4


def test_operators_inside_islands_are_told_apart() -> None:
    """The first eight decode steps are looked into; that slows them down, so the rest comes from the others."""
    opened = open_settings(DEMO_MODEL)
    target = choose_target(RunSettings(cuda="0"), look_in_profile)
    replanner = Replanner(plan_request(opened, target, {}), lambda request: place(request, lambda linear: Shares()))
    timeline = Timeline(looks_inside=True)
    with load(opened, replanner, None, threads=1, timeline=timeline) as engine:
        engine.prefill([1, 2, 3])
        for token_id in range(10):
            engine.decode(token_id + 5)
        timeline.stop()
    times = op_times(settled(timeline.steps(), DECODE), modelled=False)
    assert times is not None
    assert times.steps == 2
    assert {row.operator for row in times.host} == {"island", "attention", "host columns", BETWEEN}
    inside = {row.operator: row for row in times.inside}
    assert inside["QuickGelu"].count == LAYERS
    assert sum(row.mean_s for row in times.inside) > 0


def test_every_operator_of_a_step_is_found_and_the_host_adds_up() -> None:
    opened = open_settings(DEMO_MODEL)
    target = choose_target(RunSettings(cuda="1", device="simulated"), look_in_profile)
    replanner = Replanner(
        plan_request(opened, target, {}),
        lambda request: place(request, lambda linear: Shares(resident=0.4, streamed=0.3)),
    )
    timeline = Timeline()
    with load(opened, replanner, SimulatedDevice(1 << 30), threads=1, timeline=timeline) as engine:
        engine.prefill([1, 2, 3])
        for token_id in range(STEPS + 1):
            engine.decode(token_id + 5)
        timeline.stop()
    steps = timeline.steps()
    assert [step.name for step in steps] == ["prefill of 3 tokens", *[DECODE] * (STEPS + 1)]

    times = op_times(settled(steps, DECODE), timeline.modelled)
    assert times is not None
    assert (times.steps, times.modelled) == (STEPS, True)
    counts = {(row.operator, row.what): row.count for row in times.host}
    assert counts["attention", "GroupQueryAttention"] == LAYERS
    assert counts["island", "QuickGelu, Mul"] == LAYERS
    for operator in ("host columns", "queue", "wait", "collect"):
        assert counts[operator, "gate_proj, up_proj"] == LAYERS
        assert counts[operator, "lm_head"] == 1
    assert sum(row.share for row in times.host) == pytest.approx(1)
    assert all(row.mean_s >= 0 for row in times.host)
    levels = 4 * LAYERS + 1
    on_device = {(row.operator, row.what): row.count for row in times.device}
    assert on_device["copy-out", "compute stream"] == levels
    assert on_device["copy-in", "compute stream"] == levels
    assert {operator for operator, _ in on_device} == {"copy-in", "copy-out", "gemm"}
