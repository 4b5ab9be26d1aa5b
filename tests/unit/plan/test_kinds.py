"""Kinds of groups: a MILP has a few, whatever the model; those of about one size are planned alike."""

import itertools
from dataclasses import replace

import pytest

from offload.plan.advice import with_advice
from offload.plan.kinds import MOST_KINDS, Kinds
from offload.plan.placed_model import PlacedModel
from offload.plan.placer import Placer
from offload.plan.placing import NO_RING
from offload.plan.planner import is_searched, make_plan
from offload.plan.request import PlanRequest
from offload.plan.shares import ModelShares
from offload.spec.linear import LinearSpec
from offload.spec.step import Workload
from offload.spec.units import MIB
from tests.unit.plan.test_planner import FIXED, request, resident_nbytes, spec


def many(count: int) -> list[LinearSpec]:
    """Linears of one kind."""
    return [spec(f"{n}", 64, 64) for n in range(count)]


def kinds(count: int, why: str = "") -> list[LinearSpec]:
    """Two Linears of each kind, from 16 columns to 16 times `count`."""
    names = [(n, layer) for layer in range(2) for n in range(count)]
    return [replace(spec(f"{layer}.k{n}", 256, 16 * (n + 1), why=why), kind=f"k{n}") for n, layer in names]


def kinds_of(asked: PlanRequest) -> Kinds:
    return Kinds(Placer(asked), Workload(asked.depth))


@pytest.mark.parametrize(("count", "expected"), [(3, 3), (MOST_KINDS, MOST_KINDS), (MOST_KINDS + 1, MOST_KINDS - 1)])
def test_kinds_beyond_a_number_are_put_together(count: int, expected: int) -> None:
    found = kinds_of(request(kinds(count), 4 * MIB))
    assert found.count == count
    assert len(found.groups) == expected
    assert sum(map(len, found.groups)) == 2 * count


def test_kinds_that_are_put_together_are_of_about_one_size_and_one_weight() -> None:
    asked = request(kinds(200), 4 * MIB)
    sizes = [[asked.linears[number].weight_bytes for (number,) in groups] for groups in kinds_of(asked).groups]
    assert len(sizes) == MOST_KINDS - 1
    assert all(max(smaller) <= min(larger) for smaller, larger in itertools.pairwise(sizes))
    total = sum(map(sum, sizes))
    assert all(sum(some) == pytest.approx(total / len(sizes), rel=0.2) for some in sizes)


def test_linears_that_stay_are_a_kind_of_their_own() -> None:
    stay = [replace(linear, name=f"{linear.name}+", group=f"{linear.group}+") for linear in kinds(20, "not on a GPU")]
    linears = [*kinds(20), *stay]
    asked = request(linears, 4 * MIB)
    found = kinds_of(asked)
    reasons = [{linears[number].host_only_reason for (number,) in groups} for groups in found.groups]
    assert all(len(some) == 1 for some in reasons)
    fastest = found.milp(2 * MIB, NO_RING).fastest()
    assert fastest is not None
    assert len(fastest.shares) == len(found.groups) <= MOST_KINDS
    resident = found.shares(fastest).resident
    assert not any(share for share, linear in zip(resident, linears, strict=True) if linear.host_only_reason)


def test_a_model_of_many_kinds_fills_the_budget_and_says_how_it_was_planned() -> None:
    budget_bytes = 12 * MIB
    plan = make_plan(request(kinds(100), budget_bytes))
    assert plan.total_vram_bytes <= budget_bytes
    assert resident_nbytes(plan) > 0.7 * (budget_bytes - sum(FIXED.values()))
    assert sum("100 kinds of Linears" in note for note in plan.notes) == 1
    assert not any("kinds of Linears" in note for note in make_plan(request(kinds(MOST_KINDS), budget_bytes)).notes)


@pytest.mark.parametrize("linears", [many(4097), kinds(201)], ids=["Linears", "kinds"])
def test_too_many_for_a_search_share_the_budget_equally(
    linears: list[LinearSpec], monkeypatch: pytest.MonkeyPatch
) -> None:
    budget_bytes = sum(FIXED.values()) + 2 * MIB + sum(linear.weight_bytes for linear in linears) // 2
    placed = 0
    in_ram = Placer.in_ram

    def counted(placer: Placer, shares: ModelShares) -> PlacedModel:
        nonlocal placed
        placed += 1
        return in_ram(placer, shares)

    monkeypatch.setattr(Placer, "in_ram", counted)
    asked = request(linears, budget_bytes)
    assert not is_searched(asked)
    plan = with_advice(asked, make_plan(asked))
    assert placed <= 25
    assert plan.total_vram_bytes <= budget_bytes
    assert resident_nbytes(plan) > 0.2 * sum(linear.weight_bytes for linear in linears)
    assert plan.bound_s is None
    assert sum("too many" in note for note in plan.notes) == 1


def test_too_many_are_resident_whole_where_they_fit_and_on_the_host_where_there_are_more() -> None:
    whole = make_plan(request(many(4097), 128 * MIB))
    assert not any(len(placement.host) for placement in whole.placements)
    more = make_plan(request(many(16385), 512 * MIB))
    assert not any(placement.on_device for placement in more.placements)
    assert any("16,385 Linears" in note for note in more.notes)
    assert not any("too many" in note for note in make_plan(request(many(16385), 0)).notes)


def test_ordinary_models_are_searched() -> None:
    assert is_searched(request(many(4096), MIB))
    assert is_searched(request(kinds(200), MIB))
