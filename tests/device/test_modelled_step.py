"""Modelled steps: worked out by hand where that can be done, and of the size of Mistral-7B where it cannot."""

import resource
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest

from offload.devices.base import Span
from offload.devices.simulated.device import SimulatedDevice
from offload.devices.simulated.rates import same_rate
from offload.errors import OutOfDeviceMemoryError
from offload.machine.profile import CpuRates, DeviceProfile, GpuRates
from offload.plan.packing import split_columns
from offload.plan.plan import HostTier, LinearPlacement, Plan
from offload.run.modelled_step import ModelledRun, run_modelled
from offload.run.runner import LinearRunner
from offload.spec.attention import pair_flops
from offload.spec.linear import LinearSpec, WeightFormat
from offload.spec.step import AttentionWork, Stage, StepShape
from tests.device.support import linear, make_plan, place
from tests.unit.plan.steps import step_of

MICRO = 1e-6
# Round numbers: 1 GB/s is a byte in a nanosecond.
PROFILE = DeviceProfile(
    name="round numbers",
    estimated=True,
    cpu=CpuRates(
        threads=1,
        ram_bytes=1 << 30,
        ram_bytes_per_s=1e9,
        ram_bytes_per_s_beside_bus=0.5e9,
        disk_bytes_per_s=0.1e9,
        multiply_bytes_per_s={"fp16": {1: 1e9}, "int8": {1: 0.8e9}},
        attention_bytes_per_s=1e9,
        attention_flops_per_s=1e9,
        island_s=1000 * MICRO,
        launch_s=100 * MICRO,
        step_s=2000 * MICRO,
    ),
    gpu=GpuRates(
        name="round numbers",
        vram_bytes=1 << 30,
        vram_bytes_per_s=1e9,
        flops_per_s=same_rate(1e15),
        bus_bytes_per_s=1e9,
        bus_back_bytes_per_s=0.5e9,
        pageable_bytes_per_s=1e9,
        copy_s=100 * MICRO,
        round_trip_s=500 * MICRO,
        launch_s=200 * MICRO,
        context_bytes=0,
        workspace_bytes=0,
    ),
)
FOUR_ISLANDS = StepShape((Stage(("q",), 2), Stage(("o",), 2, (AttentionWork(1000, 500),))))
NO_ISLANDS = StepShape(())
Q, OUT = linear("q", "q", 512, 256), linear("o", "o", 512, 256)  # 1024 bytes a column, one layer


def run(plan: Plan, step: StepShape = FOUR_ISLANDS, **options: Any) -> ModelledRun:
    levels = [[placement.linear.name] for placement in plan.placements]
    return run_modelled(plan, levels, step, PROFILE, depth=1000, **options)


def test_a_step_worked_out_by_hand() -> None:
    """Half of q is resident; o is on the host."""
    made = run(make_plan([place(Q, 0.5, 0), place(OUT, 0, 0)], 4, 0, 0))
    fetch, copy_out = 100 + 2048 / 1000, 100 + 2 * 512 / 1000
    multiply = 200 + 128 * 1024 / 1000
    q_device, q_host = fetch + multiply + copy_out + 300, 100 + 131.072
    assert q_device > q_host
    attention, o_host = 1.5 * 1000.5, 100 + 262.144
    expected = 2000 + (2000 + q_device) + (2000 + attention + o_host)
    assert made.step_s == pytest.approx([expected * MICRO] * 4)


def test_a_cache_that_is_rewritten_costs_two_passes_more() -> None:
    plan = make_plan([place(Q, 0, 0), place(OUT, 0, 0)], 4, 0, 0)
    more_s = run(plan, replace(FOUR_ISLANDS, concat_cache=True)).steady_step_s - run(plan).steady_step_s
    assert more_s == pytest.approx(2 * 1000.5 * MICRO)


def o_on_host(q: LinearPlacement, **kept: Any) -> float:
    """Seconds of the host columns of o: all 256, beside a q that is placed as given."""
    spans = run(make_plan([q, replace(place(OUT, 0, 0), **kept)], 4, 1, 1 << 17)).spans
    return [span.duration_s for span in spans if span.name == "host columns of o"][-1]


def test_host_columns_are_read_as_they_are_kept_and_slower_beside_the_bus() -> None:
    resident, streamed = place(Q, 1, 0), place(Q, 0.75, 0.25)
    assert o_on_host(resident) == pytest.approx((100 + 262.144) * MICRO)
    assert o_on_host(streamed) == pytest.approx((100 + 2 * 262.144) * MICRO)
    assert o_on_host(resident, tier=HostTier.FILE) == pytest.approx((100 + 10 * 262.144) * MICRO)
    int8_bytes = 256 * 8 * (64 + 2)  # 8 blocks of 64 in a column, a scale each
    assert o_on_host(resident, host_format=WeightFormat.INT8) == pytest.approx(100 * MICRO + int8_bytes / 0.8e9)


def test_a_step_bound_by_the_bus_takes_as_long_as_its_copies() -> None:
    """Each of q and o is 4 pieces of 64 KiB; x waits for none of them. All else is nearly free."""
    assert PROFILE.gpu is not None
    gpu = replace(PROFILE.gpu, launch_s=0.0, vram_bytes_per_s=1e12, round_trip_s=0.0)
    profile = replace(PROFILE, cpu=replace(PROFILE.cpu, step_s=0.0), gpu=gpu)
    plan = make_plan([place(Q, 0, 1), place(OUT, 0, 1)], 4, 2, 1 << 16)
    made = run_modelled(plan, [["q"], ["o"]], NO_ISLANDS, profile, 0)
    copies_s = 8 * (100 + 65.536) * MICRO
    assert made.steady_step_s == pytest.approx(copies_s, rel=1e-3)


def test_columns_in_blocks_cross_the_bus_as_they_are_kept() -> None:
    """All of q is streamed in int8 blocks of 64, each with an fp16 scale; 9 rows wait for fp16 panels as well."""
    column_bytes = 8 * (64 + 2)
    plan = make_plan([replace(place(Q, 0, 1), host_format=WeightFormat.INT8)], 9, 1, 256 * column_bytes)
    for rows, panels in ((1, 0), (9, 1)):
        spans = run(plan, NO_ISLANDS, rows=(rows, rows)).spans
        copies = [span for span in spans if span.track == "modelled weight copies"]
        multiplied = [span for span in spans if span.name == f"gemm {rows}x512x256"]
        assert copies[-1].duration_s == pytest.approx((100 + 256 * column_bytes / 1000) * MICRO)
        expected = 200 + 256 * column_bytes / 1000 + panels * (200 + 2 * 262.144)
        assert [span.duration_s for span in multiplied] == pytest.approx([expected * MICRO] * 2)


def test_a_processor_alone() -> None:
    profile = replace(PROFILE, gpu=None)
    made = run_modelled(make_plan([place(Q, 0, 0)], 4, 0, 0), [["q"]], NO_ISLANDS, profile, 0)
    assert made.step_s == pytest.approx([(2000 + 100 + 262.144) * MICRO] * 4)


def test_a_plan_that_the_gpu_cannot_hold_is_refused() -> None:
    with pytest.raises(OutOfDeviceMemoryError):
        run(make_plan([place(linear("q", "q", 1 << 15, 1 << 15), 1, 0)], 4, 0, 0))


# Mistral-7B: 32 layers, hidden 4096, 8 of 32 heads for keys and values, an MLP of 14336, fp16.

T4 = DeviceProfile(
    name="like a T4",
    estimated=True,
    cpu=replace(
        PROFILE.cpu,
        threads=2,
        ram_bytes_per_s=14e9,
        ram_bytes_per_s_beside_bus=12.6e9,
        multiply_bytes_per_s={"fp16": {1: 14e9, 8: 7.5e9, 32: 1.88e9, 128: 0.469e9}},
        attention_bytes_per_s=11e9,
        attention_flops_per_s=80e9,
        island_s=20 * MICRO,
        launch_s=4 * MICRO,
        step_s=500 * MICRO,
    ),
    gpu=GpuRates("T4", 16 << 30, 250e9, same_rate(39e12), 12e9, 12e9, 4.8e9, 10e-6, 40e-6, 8e-6, 150 << 20, 40 << 20),
)
PREFILL = 32


def mistral_levels() -> list[list[LinearSpec]]:
    levels = []
    for layer in range(32):
        for group, members in (
            ("qkv", [("q", 4096, 4096), ("k", 4096, 1024), ("v", 4096, 1024)]),
            ("o", [("o", 4096, 4096)]),
            ("mlp", [("gate", 4096, 14336), ("up", 4096, 14336)]),
            ("down", [("down", 14336, 4096)]),
        ):
            specs = [linear(f"{layer}.{name}", f"{layer}.{group}", k, n) for name, k, n in members]
            levels.append([replace(spec, layer=str(layer)) for spec in specs])
    return [*levels, [replace(linear("head", "head", 4096, 32000), layer="")]]


def run_mistral(resident: float, streamed: float, prefill: float, rows: Sequence[int]) -> ModelledRun:
    levels = mistral_levels()
    placements = [place(spec, resident, streamed, prefill) for level in levels for spec in level]
    plan = make_plan(placements, 256, 2, 8 << 20, prefill_tokens=PREFILL)
    names = [[spec.name for spec in level] for level in levels]
    specs = [spec for level in levels for spec in level]
    step = step_of(specs, AttentionWork(2 * 8 * 128 * 2, pair_flops(32, 128)), last_islands=0)
    return run_modelled(plan, names, step, T4, 1024, rows)


def last_step(made: ModelledRun) -> list[Span]:
    """Give the spans of the last step, cut to it."""
    start_s, stop_s = sum(made.step_s[:-1]), sum(made.step_s)
    cut = []
    for span in made.spans:
        first, last = max(span.start_s, start_s), min(span.start_s + span.duration_s, stop_s)
        if first < last:
            cut.append(replace(span, start_s=first, duration_s=last - first))
    return cut


def busy_s(spans: Sequence[Span], at_least: int) -> float:
    """Measure for how long so many spans run at the same time."""
    edges = sorted(edge for span in spans for edge in ((span.start_s, 1), (span.start_s + span.duration_s, -1)))
    busy, running = 0.0, 0
    for (now_s, change), (next_s, _) in pairwise([*edges, edges[-1]]):
        running += change
        busy += (next_s - now_s) if running >= at_least else 0.0
    return busy


def test_copies_gemms_and_the_host_work_side_by_side() -> None:
    made = run_mistral(0.42, 0.25, 0.0, rows=(1, 1, 1))
    spans = last_step(made)
    at_work = [span for span in spans if span.name != "wait"]
    assert {span.track for span in at_work} == {"modelled host", "modelled compute", "modelled weight copies"}
    assert made.step_s[-1] == pytest.approx(made.step_s[-2], rel=1e-6)
    assert busy_s(at_work, at_least=2) > 0.8 * made.steady_step_s
    assert busy_s(at_work, at_least=3) > 0.02 * made.steady_step_s
    assert busy_s(at_work, at_least=1) > 0.97 * made.steady_step_s
    waits = [span for span in spans if span.name == "wait"]
    assert len(waits) == len(mistral_levels()), "the host waits once a level"


def test_a_step_of_a_big_model_allocates_nothing_and_takes_little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    for kind, name in (
        (SimulatedDevice, "allocate"),
        (SimulatedDevice, "allocate_pinned"),
        (SimulatedDevice, "pin"),
        (LinearRunner, "run"),
    ):
        method = getattr(kind, name)

        def counted(self: Any, *arguments: Any, method: Any = method, name: str = name) -> Any:
            calls.append(name)
            return method(self, *arguments)

        monkeypatch.setattr(kind, name, counted)
    before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    run_mistral(0.42, 0.1, 0.3, rows=(1, PREFILL, 1))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib < 512 << 10
    assert set(calls[: calls.index("run")]) == {"allocate", "allocate_pinned", "pin"}
    assert set(calls[calls.index("run") :]) == {"run"}


def test_prefill_that_streams_is_faster_and_decode_after_it_as_fast_as_ever() -> None:
    mixed = run_mistral(0.42, 0.1, 0.48, rows=(PREFILL, PREFILL, 1, 1))
    alone = run_mistral(0.42, 0.1, 0.0, rows=(PREFILL, PREFILL, 1, 1))
    assert mixed.step_s[1] < 0.5 * alone.step_s[1]
    assert mixed.step_s[3] == pytest.approx(alone.step_s[3], rel=1e-6)
    # All but the resident columns cross the bus once in a step.
    weights = sum(spec.weight_bytes for level in mistral_levels() for spec in level)
    assert mixed.step_s[1] > 0.57 * weights / 12e9


def test_a_step_copies_every_streamed_byte_once() -> None:
    made = run_mistral(0.42, 0.25, 0.0, rows=(1, 1, 1))
    copied_s = sum(span.duration_s for span in last_step(made) if span.track == "modelled weight copies")
    streamed_bytes = pieces = 0
    for level in mistral_levels():
        column_bytes = 2 * level[0].in_features
        columns = sum(round(0.25 * spec.out_features) for spec in level)
        streamed_bytes += columns * column_bytes
        pieces += len(split_columns(columns, column_bytes, 8 << 20))
    assert copied_s == pytest.approx(streamed_bytes / 12e9 + pieces * 10e-6, rel=1e-3)
