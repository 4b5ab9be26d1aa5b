"""The replay: a walk with a finite ring, checked by hand, and against the MILP on real shapes."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hybrid.loading.target import find_profile
from offload.plan.cost import HostAlone, LevelCost, StepCost, step_cost
from offload.plan.placed_model import PlacedModel
from offload.plan.placing import NO_RING
from offload.plan.plan import Plan, StreamRing
from offload.plan.planner import make_plan
from offload.plan.replay import _Slots, replay
from offload.plan.request import PlanRequest
from offload.run.modelled_step import run_modelled
from offload.spec.attention import pair_flops
from offload.spec.linear import Layout, LinearSpec, WeightFormat
from offload.spec.step import AttentionWork, Workload
from offload.spec.units import GIB
from tests.unit.plan.steps import step_of

BUDGETS = (0, 0.5, 6, 12, 15)  # GiB: nothing, mostly streamed, a half, nearly all, all
HOST_LEVEL = LevelCost(3.0, False, 0.0, 0.0, 0, 0.0, 0.0)
NOTHING = HostAlone(0.0, 0.0)


def cost(
    *levels: LevelCost,
    alone: Sequence[HostAlone] = (),
    after: HostAlone = NOTHING,
    start_s: float = 0.0,
    ram_s: float = 0.0,
    disk_s: float = 0.0,
) -> StepCost:
    return StepCost(start_s, (*(alone or (NOTHING,) * len(levels)), after), levels, ram_s, disk_s)


def test_host_levels_follow_each_other() -> None:
    alone, after = (NOTHING, HostAlone(0.5, 0.25)), HostAlone(0.5, 0.25)
    walked = replay(cost(HOST_LEVEL, HOST_LEVEL, alone=alone, after=after, start_s=0.25), NO_RING)
    assert walked.step_s == pytest.approx(7.75)
    assert {name: s for name, s in walked.parts.items() if s} == pytest.approx(
        {"islands": 1.25, "attention": 0.5, "host": 6.0}
    )
    assert walked.bound_by == "host"


def test_device_and_host_work_side_by_side() -> None:
    level = LevelCost(3.0, True, 1.0, 4.0, 0, 0.0, 0.0)
    walked = replay(cost(level), NO_RING)
    assert walked.step_s == pytest.approx(5.0)
    assert (walked.parts["gpu"], walked.parts["round trips"], walked.parts["host"]) == pytest.approx((4.0, 1.0, 0.0))
    assert replay(cost(replace(level, host_s=6.0)), NO_RING).step_s == pytest.approx(6.0)


def test_a_step_that_streams_more_than_it_computes_lasts_as_long_as_its_copies() -> None:
    level = LevelCost(0.0, True, 0.0, 0.0, 4, 2.0, 0.5)
    walked = replay(cost(level, level), StreamRing(3, 256))
    assert walked.step_s == pytest.approx(16.0)
    assert walked.bound_by == "bus"


def test_one_slot_cannot_be_copied_to_while_it_is_read() -> None:
    level = LevelCost(0.0, True, 0.0, 0.0, 4, 2.0, 0.5)
    assert replay(cost(level), StreamRing(1, 256)).step_s == pytest.approx(4 * 2.5)


def test_the_bus_works_ahead_while_the_host_works_alone_but_only_as_far_as_the_ring() -> None:
    streams = LevelCost(0.0, True, 0.0, 0.0, 4, 1.0, 0.0)
    assert replay(cost(HOST_LEVEL, streams), StreamRing(4, 256)).step_s == pytest.approx(4.0)
    assert replay(cost(HOST_LEVEL, streams), StreamRing(2, 256)).step_s == pytest.approx(3.0 + 2.0)


def test_ram_and_disk_bound_a_step_from_below() -> None:
    walked = replay(cost(HOST_LEVEL, ram_s=4.0, disk_s=9.0), NO_RING)
    assert (walked.step_s, walked.bound_by) == (9.0, "disk")
    assert sum(walked.parts.values()) == pytest.approx(9.0)


def mistral(budget_gib: float, machine: str = "colab-t4", layers: int = 32) -> PlanRequest:
    """Mistral-7B in 16 bits, or some layers of it, without a file."""
    shapes = [("q", 4096, 4096, "qkv"), ("k", 4096, 1024, "qkv"), ("v", 4096, 1024, "qkv"), ("o", 4096, 4096, "o")]
    shapes += [("gate", 4096, 14336, "up"), ("up", 4096, 14336, "up"), ("down", 14336, 4096, "down")]

    def spec(layer: str, kind: str, k: int, n: int, group: str) -> LinearSpec:
        name = f"{layer}.{kind}"
        return LinearSpec(name, k, n, WeightFormat.FP16, Layout.NK, 2 * k * n, kind, layer, f"{layer}.{group}")

    linears = [spec(str(layer), *shape) for layer in range(layers) for shape in shapes]
    linears.append(spec("", "head", 4096, 32000, "head"))
    profile = find_profile(machine)
    assert profile.gpu is not None
    return PlanRequest(
        model="mistral",
        linears=linears,
        profile=profile,
        budget_bytes=int(budget_gib * GIB),
        fixed_vram_bytes={"context": profile.gpu.context_bytes, "workspace": profile.gpu.workspace_bytes},
        other_ram_bytes={},
        step=step_of(linears, AttentionWork(2 * 8 * 128 * 2, pair_flops(32, 128)), last_islands=0),
    )


@cache
def plan_for(budget_gib: float) -> Plan:
    return make_plan(mistral(budget_gib))


@pytest.mark.parametrize("budget_gib", BUDGETS[1:])
def test_the_replay_is_within_a_tenth_of_the_milp_on_a_t4(budget_gib: float) -> None:
    plan = plan_for(budget_gib)
    assert plan.bound_s is not None
    assert plan.bound_s * 0.999 <= plan.predicted.decode_step_s <= plan.bound_s * 1.1


@pytest.mark.parametrize("budget_gib", BUDGETS)
def test_a_step_that_is_executed_in_modelled_time_takes_what_the_replay_says(budget_gib: float) -> None:
    plan, request = plan_for(budget_gib), mistral(budget_gib)
    groups: dict[str, list[str]] = {}
    for linear in request.linears:
        groups.setdefault(linear.group, []).append(linear.name)
    made = run_modelled(plan, list(groups.values()), request.step, request.profile, request.depth, rows=(1, 1, 1))
    assert made.steady_step_s == pytest.approx(plan.predicted.decode_step_s, rel=0.05)


def test_more_budget_is_never_slower_on_a_t4() -> None:
    steps = [plan_for(gib).predicted.decode_step_s for gib in BUDGETS]
    assert steps == sorted(steps, reverse=True)


def test_prefill_streams_what_decode_leaves_to_the_cpu() -> None:
    plan = plan_for(6)
    assert 0 < plan.prefill_tokens <= 64
    more = [p for p in plan.placements if p.prefill_stop > p.streamed.stop]
    assert sum(p.prefill_stop - p.streamed.stop for p in more) > sum(len(p.host) for p in plan.placements) / 2
    request, model = mistral(6), PlacedModel.of(plan.placements)
    works = [Workload(0, plan.chunk_tokens, prefill) for prefill in (True, False)]
    costs = [step_cost(model, plan.ring, request.step, request.profile, work) for work in works]
    anew, as_in_decode = (replay(step, plan.ring).step_s for step in costs)
    assert anew < as_in_decode / 2


def test_a_deeper_cache_makes_a_longer_step_and_attention_a_larger_part() -> None:
    shallow, middle, deep = plan_for(6).at_depths
    assert [step.depth for step in (shallow, middle, deep)] == [0, 1024, 4096]
    assert shallow.decode_step_s <= middle.decode_step_s < deep.decode_step_s
    assert deep.parts_s["attention"] == pytest.approx(4 * middle.parts_s["attention"], rel=0.01)


def test_pinned_memory_that_is_limited_is_kept() -> None:
    plan = make_plan(replace(mistral(4), pinned_limit_bytes=GIB))
    assert 0 < plan.ram_bytes["pinned weights"] <= GIB


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.floats(0, 3), st.floats(0, 3), st.integers(0, 5), st.floats(0.01, 2), st.floats(0, 2)),
        min_size=1,
        max_size=6,
    ),
    st.integers(1, 5),
)
def test_the_parts_add_up_and_no_level_is_left_out(
    levels: list[tuple[float, float, int, float, float]], slots: int
) -> None:
    costs = [LevelCost(host, True, 0.1, gpu, n, copy, gemm) for host, gpu, n, copy, gemm in levels]
    step = cost(*costs, alone=[HostAlone(0.1, 0.0)] * len(levels))
    walked = replay(step, StreamRing(slots, 256))
    assert sum(walked.parts.values()) == pytest.approx(walked.step_s)
    assert walked.step_s >= sum(0.1 + max(level.host_s, level.resident_s) for level in step.levels) - 1e-9


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 700), st.floats(0.01, 2), st.floats(0, 2), st.floats(0, 20)), min_size=1, max_size=5
    ),
    st.integers(1, 7),
)
def test_rounds_of_the_ring_that_are_alike_need_not_be_walked(
    levels: list[tuple[int, float, float, float]], slots: int
) -> None:
    costs = [LevelCost(host, True, 0.1, 0.2, n, copy, gemm) for n, copy, gemm, host in levels]
    released: list[float] = [0.0] * slots
    now = arrived = began = 0.0
    for _ in range(3):
        began = now
        for level in costs:
            gpu = now + level.trip_s + level.resident_s
            for _ in range(level.pieces):
                arrived = max(arrived, released[-slots]) + level.copy_s
                gpu = max(gpu, arrived) + level.gemm_s
                released.append(gpu)
            now = max(gpu, now + level.host_s)
    walked = replay(cost(*costs), StreamRing(slots, 256))
    assert walked.step_s == pytest.approx(now - began, rel=2e-3)
    assert sum(walked.parts.values()) == pytest.approx(walked.step_s)


def test_a_step_of_a_million_pieces_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    rounds = 0
    walk = _Slots._round

    def counted(slots: _Slots, level: LevelCost, pieces: int, gpu_s: float) -> tuple[float, float]:
        nonlocal rounds
        rounds += 1
        return walk(slots, level, pieces, gpu_s)

    monkeypatch.setattr(_Slots, "_round", counted)
    level = LevelCost(1.0, True, 0.1, 0.2, 1_000_000, 0.5, 0.25)
    assert replay(cost(level), StreamRing(4, 256)).step_s == pytest.approx(500_000, rel=1e-3)
    assert rounds < 40
