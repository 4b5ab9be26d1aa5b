"""Plans: within the budget, whole, monotone in the budget, the same every time, and with reasons."""

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from offload.devices.simulated.rates import same_rate
from offload.errors import RamBudgetError
from offload.machine.profile import CpuRates, DeviceProfile, GpuRates
from offload.plan.packing import resident_matrices, split_columns, streamed_matrices
from offload.plan.placing import place
from offload.plan.plan import LinearPlacement, Plan, StreamRing
from offload.plan.planner import make_plan
from offload.plan.ram_tiers import READ_AHEAD, file_bytes
from offload.plan.request import CHUNK_TOKENS, PlanRequest
from offload.plan.shares import Shares
from offload.spec.linear import Layout, LinearSpec, WeightFormat
from offload.spec.units import GIB, MIB, format_bytes
from tests.unit.plan.steps import step_of

# A slow CPU and short round trips: the device pays even for tiny Linears.
MULTIPLY = {name: {1: 1e6, 128: 1e5} for name in WeightFormat}
MACHINE = DeviceProfile(
    "bench",
    True,
    CpuRates(2, 16 * GIB, 10e9, 9e9, 1e9, MULTIPLY, 5e9, 20e9, 1e-9, 1e-9, 1e-9),
    GpuRates("Bench GPU", 8 * GIB, 200e9, same_rate(20e12), 10e9, 10e9, 4e9, 1e-9, 1e-9, 1e-9, 150 * MIB, 40 * MIB),
)
FIXED = {"context": 3 * MIB, "workspace": MIB}
VRAM_KEYS = ["context", "workspace", "staging", "activations", "weights"]


def spec(
    name: str, k: int, n: int, weight_format: str = "fp16", layout: Layout = Layout.NK, group: str = "", why: str = ""
) -> LinearSpec:
    itemsize = {"fp32": 4.0, "fp16": 2.0, "bf16": 2.0, "int8": 1.0, "int4": 0.5}[weight_format]
    return LinearSpec(
        name, k, n, WeightFormat(weight_format), layout, int(k * n * itemsize), "kind", "0", group or name, why
    )


def request(linears: Sequence[LinearSpec], budget_bytes: int, **changes: Any) -> PlanRequest:
    base = PlanRequest(
        model="m",
        linears=linears,
        profile=MACHINE,
        budget_bytes=budget_bytes,
        fixed_vram_bytes=FIXED,
        other_ram_bytes={"other weights": 10, "kv cache": 20},
        step=step_of(linears),
        pinned_limit_bytes=0,  # what fits is resident; streaming has tests of its own
    )
    return replace(base, **changes)


def resident(plan: Plan) -> int:
    return sum(len(p.resident) for p in plan.placements)


def resident_nbytes(plan: Plan) -> int:
    return sum(round(len(p.resident) * p.linear.column_bytes) for p in plan.placements)


def columns(placement: LinearPlacement) -> list[int]:
    parts = (placement.resident, placement.streamed, placement.host)
    return [column for part in parts for column in range(part.start, part.stop)]


@st.composite
def models(draw: st.DrawFn) -> list[LinearSpec]:
    """Linears of every format and layout, in groups that share their input."""
    linears = []
    for number in range(draw(st.integers(0, 6))):
        group, k = f"g{number}", draw(st.integers(1, 64)) * 16
        for member in range(draw(st.integers(1, 3))):
            name, n = f"{group}.{member}", draw(st.integers(1, 700))
            kind = draw(st.sampled_from([*WeightFormat]))
            why = "" if kind.is_float and draw(st.integers(0, 4)) else "not on a GPU"
            linears.append(spec(name, k, n, kind, draw(st.sampled_from([*Layout])), group, why))
    return linears


BUDGETS = st.integers(0, 24 * MIB)


@settings(max_examples=50, deadline=None)
@given(linears=models(), budget_bytes=BUDGETS)
def test_a_plan_keeps_the_budget_and_every_column(linears: list[LinearSpec], budget_bytes: int) -> None:
    plan = make_plan(request(linears, budget_bytes))
    assert plan.total_vram_bytes <= budget_bytes
    assert [placement.linear for placement in plan.placements] == linears
    for placement in plan.placements:
        assert columns(placement) == list(range(placement.linear.out_features))
        assert placement.reason
        if placement.linear.host_only_reason:
            assert not placement.on_device
            assert placement.reason == "not on a GPU"
    on_device = any(placement.on_device for placement in plan.placements)
    assert list(plan.vram_bytes) == VRAM_KEYS
    assert (plan.total_vram_bytes > 0) == on_device
    if on_device:
        assert {name: plan.vram_bytes[name] for name in FIXED} == FIXED
        assert plan.vram_bytes["weights"] >= resident_nbytes(plan)
        assert plan.vram_bytes["staging"] == plan.ring.nbytes
        assert plan.vram_bytes["activations"] > 0
    placed = resident_nbytes(plan) + plan.ram_bytes["host weights"] + plan.ram_bytes["pinned weights"]
    assert placed >= sum(linear.weight_bytes for linear in linears) - len(linears)  # at most rounded and aligned


@settings(max_examples=25, deadline=None)
@given(linears=models(), budget_bytes=BUDGETS, ram_budget_bytes=BUDGETS, pinned=st.sampled_from([0, None]))
def test_a_plan_keeps_the_ram_budget_and_waits_for_the_disk(
    linears: list[LinearSpec], budget_bytes: int, ram_budget_bytes: int, pinned: int | None
) -> None:
    asked = request(linears, budget_bytes, ram_budget_bytes=ram_budget_bytes, pinned_limit_bytes=pinned)
    try:
        plan = make_plan(asked)
    except RamBudgetError as error:
        ram_budget_bytes = error.least_bytes
        plan = make_plan(replace(asked, ram_budget_bytes=ram_budget_bytes))
    assert plan.total_ram_bytes <= ram_budget_bytes
    assert plan.total_vram_bytes <= budget_bytes
    assert plan.read_ahead_bytes == plan.ram_bytes[READ_AHEAD]
    assert plan.predicted.decode_step_s >= file_bytes(plan.placements) / MACHINE.cpu.disk_bytes_per_s


def test_what_ram_cannot_hold_goes_to_the_device_first() -> None:
    """Streamed columns take RAM too: the GPU holds what it can, and only what is left is read from the disk."""
    linears = [spec(f"{layer}.{name}", 1024, 16_384) for layer in range(4) for name in ("up", "down")]  # 256 MiB
    slow_disk = replace(MACHINE, cpu=replace(MACHINE.cpu, disk_bytes_per_s=1e5))
    plan = make_plan(request(linears, 96 * MIB, profile=slow_disk, ram_budget_bytes=128 * MIB, pinned_limit_bytes=None))
    assert resident_nbytes(plan) > 40 * MIB
    assert plan.total_ram_bytes <= 128 * MIB
    assert plan.predicted.bound_by == "disk"
    assert plan.bound_s is not None
    assert plan.bound_s <= plan.predicted.decode_step_s < 1.5 * plan.bound_s


@settings(max_examples=25, deadline=None)
@given(linears=models(), budgets=st.lists(BUDGETS, min_size=2, max_size=2).map(sorted))
def test_more_budget_is_never_fewer_resident_bytes(linears: list[LinearSpec], budgets: list[int]) -> None:
    less, more = (make_plan(request(linears, budget_bytes)) for budget_bytes in budgets)
    assert resident_nbytes(less) <= resident_nbytes(more)
    assert less.predicted.decode_step_s > 0


@settings(max_examples=10, deadline=None)
@given(linears=models(), budget_bytes=BUDGETS)
def test_the_same_question_has_the_same_answer_byte_for_byte(linears: list[LinearSpec], budget_bytes: int) -> None:
    first, second = (json.dumps(make_plan(request(list(linears), budget_bytes)).to_json()) for _ in range(2))
    assert first == second
    assert json.loads(first)["vram_bytes"].keys() == dict.fromkeys(VRAM_KEYS).keys()


@settings(max_examples=60, deadline=None)
@given(
    linears=models(),
    resident_share=st.floats(0, 1),
    streamed_share=st.floats(0, 1),
)
def test_any_shares_make_a_whole_plan_whose_ring_fits_its_pieces(
    linears: list[LinearSpec], resident_share: float, streamed_share: float
) -> None:
    plan = place(request(linears, GIB), lambda _: Shares(resident_share, streamed_share))
    for placement in plan.placements:
        assert columns(placement) == list(range(placement.linear.out_features))
    for matrix in streamed_matrices(plan.placements):
        assert plan.ring.slots >= 2
        pieces = split_columns(matrix.columns, matrix.column_bytes, plan.ring.slot_bytes)
        assert all(len(piece) * matrix.column_bytes <= plan.ring.slot_bytes for piece in pieces)
    if not any(len(placement.streamed) for placement in plan.placements):
        assert plan.ring.nbytes == plan.ram_bytes["pinned weights"] == 0
    assert sum(matrix.columns for matrix in resident_matrices(plan.placements)) == resident(plan)


# Two Linears of 1024x512 fp16: 1 MiB each; fixed 4 MiB. Activations of 256 tokens: x 1 MiB, y up to 512 KiB, x in fp16
# 512 KiB more on the device.
PAIR = [spec("a", 1024, 512), spec("b", 1024, 512)]
ROW_SCALES_BYTES = 256 * 4  # one for each row of a chunk
WHOLE_BYTES = 4 * MIB + 2 * MIB + ROW_SCALES_BYTES + 2 * MIB


def test_a_model_that_fits_is_resident_whole_to_the_byte() -> None:
    plan = make_plan(request(PAIR, WHOLE_BYTES))
    assert CHUNK_TOKENS == 256
    assert plan.vram_bytes == {
        "context": 3 * MIB, "workspace": MIB, "staging": 0, "activations": 2 * MIB + ROW_SCALES_BYTES,
        "weights": 2 * MIB,
    }  # fmt: skip
    assert plan.total_vram_bytes == WHOLE_BYTES
    assert {placement.reason for placement in plan.placements} == {"all columns fit the budget"}
    assert plan.ram_bytes == {
        "host weights": 0, "read-ahead buffers": 0, "pinned weights": 0, "other weights": 10, "kv cache": 20,
        "staging": 2 * MIB, "activations": 3 * MIB // 2,
    }  # fmt: skip


def test_a_byte_less_leaves_a_tile_on_the_host() -> None:
    plan = make_plan(request(PAIR, WHOLE_BYTES - 1))
    assert sorted(len(placement.resident) for placement in plan.placements) == [496, 512]
    (reason,) = {placement.reason for placement in plan.placements if len(placement.host)}
    assert reason == "496 of 512 columns fit the budget"
    assert plan.ram_bytes["host weights"] == 16 * 2048


def test_equal_linears_are_placed_alike() -> None:
    plan = make_plan(request([spec(f"l{n}", 512, 512) for n in range(10)], 7 * MIB))
    widths = [len(placement.resident) for placement in plan.placements]
    assert max(widths) - min(widths) <= 16  # a tile
    assert 0 < resident(plan) < 5120


def test_a_budget_of_nothing_places_nothing_and_says_so() -> None:
    plan = make_plan(request(PAIR, 0))
    assert plan.total_vram_bytes == 0
    assert not any(placement.on_device for placement in plan.placements)
    assert {placement.reason for placement in plan.placements} == {"the budget is 0"}
    assert plan.notes == ()


@pytest.mark.parametrize("budget_bytes", [1, MIB, 4 * MIB])
def test_a_tiny_budget_places_nothing_and_says_why(budget_bytes: int) -> None:
    plan = make_plan(request(PAIR, budget_bytes))
    assert plan.total_vram_bytes == 0
    assert {placement.reason for placement in plan.placements} == {"the budget pays better elsewhere, or holds no tile"}
    (note,) = plan.notes
    assert format_bytes(budget_bytes) in note
    assert "4.00 MiB" in note  # context and workspace


def test_unsupported_formats_are_named_and_the_others_placed() -> None:
    why = "bf16 needs compute capability 8.0"
    plan = make_plan(request([spec("a", 64, 64, "bf16"), spec("b", 64, 64)], GIB, unsupported={"bf16": why}))
    bf16, fp16 = plan.placements
    assert (bf16.on_device, bf16.reason) == (False, why)
    assert len(fp16.resident) == 64
    assert sum(why in note for note in plan.notes) == 1


def test_linears_that_must_stay_are_named_once_per_reason() -> None:
    linears = [spec(f"q{n}", 64, 64, "int4", why="4-bit blocks") for n in range(3)] + [spec("f", 64, 64)]
    plan = make_plan(request(linears, GIB))
    assert [len(p.resident) for p in plan.placements] == [0, 0, 0, 64]
    (note,) = (note for note in plan.notes if "4-bit blocks" in note)
    assert all(part in note for part in ("3 Linears", "q0"))


def test_a_model_that_cannot_use_the_gpu_does_not_blame_the_budget() -> None:
    plan = make_plan(request([spec("q", 64, 64, "int4", why="4-bit blocks")], GIB))
    assert plan.total_vram_bytes == 0
    assert not any(format_bytes(GIB) in note for note in plan.notes)
    assert "4-bit blocks" in plan.notes[1]


def test_host_columns_of_float_weights_are_kept_as_asked() -> None:
    """K 100 makes two blocks of 64: 2 * (32 + 2) bytes a column of int4."""
    linears = [
        spec("half", 100, 64),
        spec("blocks", 100, 64, "int4", why="blocks"),
        spec("odd", 100, 64, "fp32", why="a Gemm with alpha"),
    ]
    plan = place(request(linears, GIB, host_format=WeightFormat.INT4), lambda _: Shares(0.5))
    assert [p.host_format for p in plan.placements] == ["int4", "int4", "fp32"]
    assert plan.placements[0].host_column_bytes == 68
    assert plan.ram_bytes["host weights"] == 32 * 68 + 64 * 50 + 64 * 400
    assert [p.host_format for p in place(request(linears, GIB), lambda _: Shares()).placements] == [
        "fp16",
        "int4",
        "fp32",
    ]


def test_rounding_of_activations_is_told_for_half_weights_only() -> None:
    for weight_format, told in (("fp16", True), ("bf16", True), ("fp32", False)):
        plan = make_plan(request([spec("a", 64, 64, weight_format)], GIB))
        assert any("tokens round activations to 16 bits" in note for note in plan.notes) is told


def test_the_ring_can_be_given() -> None:
    plan = place(request(PAIR, GIB), lambda _: Shares(streamed=1.0), StreamRing(3, 4096))
    assert (plan.ring, plan.vram_bytes["staging"]) == (StreamRing(3, 4096), 3 * 4096)
    assert plan.ram_bytes["pinned weights"] == 2 * MIB
