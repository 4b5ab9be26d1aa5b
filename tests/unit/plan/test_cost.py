"""Costs of a level, by hand."""

from dataclasses import replace

import pytest

from offload.plan.cost import LevelCost, step_cost
from offload.plan.placed_model import PlacedModel
from offload.plan.placing import NO_RING, place
from offload.plan.shares import Shares
from offload.spec.step import Workload
from offload.spec.units import GIB
from tests.unit.plan.test_planner import MACHINE, request, spec

CPU = replace(MACHINE.cpu, launch_s=0.5)  # multiplies a MB a second
LINEAR = spec("a", 1000, 1000)


def level(resident: float) -> LevelCost:
    asked = request([LINEAR], GIB, profile=replace(MACHINE, cpu=CPU))
    model = PlacedModel.of(place(asked, lambda _: Shares(resident)).placements)
    (found,) = step_cost(model, NO_RING, asked.step, asked.profile, Workload(0, 1, False)).levels
    return found


def test_host_columns_take_a_launch_and_their_bytes() -> None:
    assert level(0.0).host_s == pytest.approx(0.5 + 2.0)
    assert not level(0.0).on_device


def test_a_level_without_host_columns_takes_no_time_of_the_host() -> None:
    assert level(1.0).host_s == 0.0
    assert level(1.0).on_device


def test_a_level_on_both_sides_takes_the_time_of_each() -> None:
    half = level(0.5)
    host_columns = 1000 - 496  # whole tiles of 16 are resident
    assert half.host_s == pytest.approx(0.5 + host_columns * 2000 / 1e6)
    assert half.on_device
