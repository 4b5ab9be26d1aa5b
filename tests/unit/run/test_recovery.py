"""Shrinking plans, by the figures; that runs go on with them is in tests/faults/recovery."""

from collections.abc import Callable

import pytest

from offload.errors import DEVICE_MEMORY, PINNED_RAM, DeviceLostError, OutOfDeviceMemoryError, OverBudgetError
from offload.plan.placing import place
from offload.plan.plan import Plan
from offload.plan.planner import make_plan
from offload.plan.request import PlanRequest
from offload.plan.shares import Shares
from offload.run.recovery import Replanner
from offload.spec.units import GIB, MIB, format_bytes
from tests.unit.plan.test_planner import request, spec

# 64 Linears of 1024 x 4096 fp16, 8 MiB each: 512 MiB; FIXED and the activations take some more.
LINEARS = [spec(str(number), 1024, 4096) for number in range(64)]


def refused(asked_bytes: int, free_bytes: int = GIB, where: str = DEVICE_MEMORY) -> OutOfDeviceMemoryError:
    return OutOfDeviceMemoryError(asked_bytes, GIB - free_bytes, GIB, where)


def half_streamed(request: PlanRequest) -> Plan:
    limit_bytes = request.pinned_limit_bytes
    streamed = 0.5 if limit_bytes is None else min(0.5, limit_bytes / (512 * MIB))
    return place(request, lambda _: Shares(0.25, streamed) if request.budget_bytes else Shares())


def test_the_plan_becomes_smaller_by_what_was_asked_for() -> None:
    """From what it took, not from a budget that it had not filled."""
    replanner = Replanner(request(LINEARS, GIB))
    first = replanner.plan
    line = replanner.shrink(refused(100 * MIB))
    assert replanner.plan.budget_bytes == first.total_vram_bytes - 100 * MIB
    assert replanner.plan.budget_bytes - 10 * MIB < replanner.plan.total_vram_bytes <= replanner.plan.budget_bytes
    assert replanner.plan.warnings == (line,)
    assert replanner.plan.notes[-1] == line
    assert "100 MiB" in line
    assert format_bytes(replanner.plan.budget_bytes) in line
    second = replanner.plan
    replanner.shrink(refused(MIB))
    assert replanner.plan.budget_bytes == second.total_vram_bytes - 2 * MIB, "the least that is taken away doubles"
    assert (replanner.budget_bytes, replanner.peak_vram_bytes) == (GIB, first.total_vram_bytes)
    assert len(replanner.plan.warnings) == 2


def test_only_what_is_missing_is_taken_away() -> None:
    replanner = Replanner(request(LINEARS, GIB))
    first = replanner.plan.total_vram_bytes
    line = replanner.shrink(refused(400 * MIB, free_bytes=380 * MIB))
    assert replanner.plan.budget_bytes == first - 20 * MIB
    assert "400 MiB" in line


def test_a_library_that_does_not_say_how_much_it_wanted() -> None:
    replanner = Replanner(request(LINEARS, GIB))
    first = replanner.plan.total_vram_bytes
    assert format_bytes(first - 32 * MIB) in replanner.shrink(refused(0))
    assert replanner.plan.budget_bytes == first - 32 * MIB


@pytest.mark.parametrize(
    ("planner", "where"),
    [
        (make_plan, DEVICE_MEMORY),
        (half_streamed, DEVICE_MEMORY),
        (half_streamed, PINNED_RAM),
    ],  # make_plan takes seconds
)
def test_refusals_come_to_an_end(where: str, planner: Callable[[PlanRequest], Plan]) -> None:
    replanner = Replanner(request(LINEARS, GIB, pinned_limit_bytes=None), planner)
    refusals = 0
    while any(placement.on_device for placement in replanner.plan.placements):
        replanner.shrink(refused(1, where=where))
        refusals += 1
    assert 2 < refusals < 25
    assert replanner.plan.budget_bytes == replanner.plan.total_vram_bytes == 0
    assert len(set(replanner.plan.warnings)) == refusals


def test_pinned_memory_is_given_up_before_vram() -> None:
    replanner = Replanner(request(LINEARS, GIB, pinned_limit_bytes=None), half_streamed)
    pinned = replanner.plan.ram_bytes["pinned weights"]
    assert pinned == 256 * MIB
    line = replanner.shrink(refused(100 * MIB, where=PINNED_RAM))
    assert all(part in line for part in ("100 MiB", "pinned RAM", "156 MiB"))
    assert replanner.plan.ram_bytes["pinned weights"] == 156 * MIB
    assert replanner.plan.budget_bytes == GIB
    line = replanner.shrink(refused(200 * MIB, where=PINNED_RAM))
    assert all(part in line for part in ("200 MiB", "pinned RAM"))
    assert replanner.plan.ram_bytes["pinned weights"] == 0
    line = replanner.shrink(refused(64 * MIB, where=PINNED_RAM))
    assert all(part in line for part in ("64.00 MiB", "pinned RAM", format_bytes(replanner.plan.budget_bytes)))
    assert resident_columns(replanner.plan) > 0


def test_a_lost_device_is_not_planned_with_again() -> None:
    replanner = Replanner(request(LINEARS, GIB))
    assert "it burns" in replanner.shrink(DeviceLostError("it burns"))
    assert resident_columns(replanner.plan) == 0
    assert replanner.plan.budget_bytes == 0


def resident_columns(plan: Plan) -> int:
    return sum(len(placement.resident) for placement in plan.placements)


def over_budget(replanner: Replanner, more_bytes: int) -> OverBudgetError:
    """The device was measured to take so much more than the plan, with a block of 300 MiB yet to come."""
    used_bytes = replanner.plan.total_vram_bytes + more_bytes - 300 * MIB
    return OverBudgetError(300 * MIB, used_bytes, GIB, DEVICE_MEMORY)


def test_what_the_driver_takes_is_counted_in_quietly() -> None:
    """Of a budget of 1 GiB the plan leaves some free, so only a part of it is missing."""
    replanner = Replanner(request(LINEARS, GIB))
    first = replanner.plan
    free_bytes = GIB - first.total_vram_bytes
    assert replanner.shrink(over_budget(replanner, free_bytes + 100 * MIB)) == ""
    assert replanner.plan.vram_bytes["driver"] == free_bytes + 100 * MIB
    assert GIB - 10 * MIB < replanner.plan.total_vram_bytes <= GIB == replanner.plan.budget_bytes
    assert first.vram_bytes["weights"] - 110 * MIB < replanner.plan.vram_bytes["weights"]
    assert replanner.plan.warnings == ()
    assert format_bytes(free_bytes + 100 * MIB) in (driver_note := replanner.plan.notes[-1])
    line = replanner.shrink(refused(100 * MIB))
    assert replanner.plan.warnings == (line,)
    assert replanner.plan.notes[-2] == driver_note, "it is still so"


def test_a_driver_that_takes_more_and_more_comes_to_an_end() -> None:
    replanner = Replanner(request(LINEARS, GIB))
    said = []
    while any(placement.on_device for placement in replanner.plan.placements):
        said.append(replanner.shrink(OverBudgetError(0, replanner.plan.total_vram_bytes + 1, GIB, DEVICE_MEMORY)))
    assert 2 < len(said) < 25
    assert set(said[:-1]) == {""}
    assert replanner.plan.warnings == (said[-1],)
    assert replanner.plan.total_vram_bytes == 0
