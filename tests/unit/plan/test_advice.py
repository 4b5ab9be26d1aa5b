"""Advice: what would keep weights in RAM goes first, only what can be done is advised, and little is planned for it."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from hybrid.show.disk_text import disk_text, without_disk
from offload.machine.budget import parse_budget
from offload.machine.profile import CpuRates
from offload.plan import advice
from offload.plan.advice import with_advice, with_ram_advice
from offload.plan.plan import Plan
from offload.plan.planner import make_plan
from offload.plan.ram_tiers import file_bytes, file_warnings
from offload.plan.request import PlanRequest
from offload.spec.linear import LinearSpec, WeightFormat
from offload.spec.units import GIB, MIB
from tests.unit.plan.test_planner import MACHINE, request, spec

# RAM at 10 GB/s, every format; the disk at 0.1 GB/s.
MULTIPLY = {name: {1: 10e9, 128: 1e9} for name in WeightFormat}
SLOW_DISK = replace(MACHINE, cpu=CpuRates(2, 16 * GIB, 10e9, 9e9, 1e8, MULTIPLY, 5e9, 20e9, 1e-6, 1e-6, 1e-6))
FLOATS = [spec(f"{layer}", 4096, 8192) for layer in range(8)]  # 64 MiB each; 34 MiB in int8, 18 MiB in int4


def asked(ram_mib: int, linears: Sequence[LinearSpec] = FLOATS, budget_bytes: int = 0, **changes: Any) -> PlanRequest:
    return request(linears, budget_bytes, profile=SLOW_DISK, ram_budget_bytes=ram_mib * MIB, **changes)


def advised(request: PlanRequest) -> Plan:
    return with_advice(request, make_plan(request))


def changes(plan: Plan) -> list[tuple[str, bool]]:
    return [(advice.change, advice.fits_ram) for advice in plan.advice]


def test_more_ram_is_advised_first_where_there_is_some_and_is_enough() -> None:
    plan = advised(asked(400, most_ram_bytes=GIB))
    assert [fits for _, fits in changes(plan)] == [True, True, True]
    change, size = plan.advice[0].change.split()
    assert change == "--ram"
    nbytes = parse_budget(size, change).nbytes
    assert nbytes is not None
    assert 512 * MIB < nbytes <= GIB
    assert not file_bytes(make_plan(asked(nbytes // MIB)).placements)
    assert plan.advice[0].speedup > 10


@pytest.mark.parametrize(
    ("ram_mib", "told"),
    [
        (400, [("--host-dtype int8", True), ("--host-dtype int4", True)]),
        (250, [("--host-dtype int4", True), ("--host-dtype int8", False)]),
    ],
)
def test_else_the_first_type_that_fits(ram_mib: int, told: list[tuple[str, bool]]) -> None:
    request = asked(ram_mib, most_ram_bytes=ram_mib * MIB)
    assert changes(advised(request)) == told
    assert changes(with_ram_advice(request, make_plan(request))) == told[:1]


def test_where_nothing_fits_nothing_leads() -> None:
    request = asked(120)
    assert not any(fits for _, fits in changes(advised(request)))
    plan = with_ram_advice(request, make_plan(request))
    assert plan.advice == ()
    assert disk_text(plan) == file_warnings(plan.placements)[0]


@pytest.mark.parametrize(("host_format", "told"), [(WeightFormat.INT8, ["--host-dtype int4"]), (WeightFormat.INT4, [])])
def test_fewer_bits_than_were_asked_for(host_format: WeightFormat, told: list[str]) -> None:
    request = asked(100, host_format=host_format)
    assert file_bytes(make_plan(request).placements)
    assert [change for change, _ in changes(advised(request))] == told


def test_weights_that_cannot_be_quantised() -> None:
    stored = [spec(f"{layer}", 4096, 8192, "int4") for layer in range(8)]
    assert changes(advised(asked(100, stored))) == []
    whole = [spec(f"{layer}", 4096, 8192, why="a Gemm with alpha") for layer in range(8)]
    assert changes(advised(asked(GIB // MIB, whole))) == []


def test_more_vram_where_so_much_is_free() -> None:
    def told(most_vram_bytes: int) -> list[tuple[str, bool]]:
        request = asked(80, FLOATS, 50 * MIB, host_format=WeightFormat.INT4, most_vram_bytes=most_vram_bytes)
        return changes(advised(request))

    assert told(2 * GIB) == [("--cuda 1", True)]
    assert told(100 * MIB) == told(0) == []


def test_a_gib_of_vram_is_advised_only_where_it_is_free() -> None:
    linears = [spec(f"{layer}", 4096, 8192) for layer in range(40)]
    names = {
        free: [a.change for a in advised(asked(8192, linears, 256 * MIB, most_vram_bytes=free)).advice]
        for free in (0, GIB, 2 * GIB)
    }
    assert ["one more GiB of VRAM" in names[free] for free in names] == [False, False, True]


def test_few_plans_are_made_and_for_a_run_none_when_all_is_in_ram(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[PlanRequest] = []

    def counted(request: PlanRequest) -> Plan:
        made.append(request)
        return make_plan(request)

    monkeypatch.setattr(advice, "make_plan", counted)
    roomy = asked(600, FLOATS, 100 * MIB, most_ram_bytes=GIB, most_vram_bytes=GIB)
    plan = make_plan(roomy)
    assert with_ram_advice(roomy, plan) is plan
    assert not made
    quantised = asked(100, host_format=WeightFormat.INT4)
    with_advice(quantised, make_plan(quantised))
    assert not made
    tight = asked(200, FLOATS, 100 * MIB, most_ram_bytes=GIB, most_vram_bytes=GIB)
    with_advice(tight, make_plan(tight))
    assert 0 < len(made) <= 4


def test_the_text_names_the_first_that_fits_and_nothing_is_told_twice() -> None:
    plan = advised(asked(250))
    assert disk_text(plan).startswith(file_warnings(plan.placements)[0])
    assert "--host-dtype int4 would fit RAM" in disk_text(plan)
    assert without_disk(plan, plan.notes) == [note for note in plan.notes if "from the disk" not in note]
    roomy = advised(asked(600))
    assert disk_text(roomy) == ""
    assert without_disk(roomy, ["a", "b"]) == ["a", "b"]
