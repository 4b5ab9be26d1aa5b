"""A plan is as fast as what other programs do: all on the host, equal shares, whole layers first, the rest streamed."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from offload.plan.memory import fits
from offload.plan.placer import Placer
from offload.plan.placing import NO_RING, place
from offload.plan.plan import StreamRing
from offload.plan.planner import make_plan
from offload.plan.request import PlanRequest
from offload.plan.shares import ModelShares, Shares, SharesOf
from offload.spec.linear import Layout, WeightFormat
from offload.spec.units import MIB
from tests.unit.plan.test_replay import mistral

LAYERS = 4  # 1.87 GiB of weights
HARDLY = 1.001
STREAMED_RING = StreamRing(4, 4 * MIB)


def most(fraction: Callable[[float], SharesOf], request: PlanRequest, ring: StreamRing) -> SharesOf:
    """The shares of the largest fraction that fits, to a thousandth."""
    placer, low, high = Placer(request), 0, 1000
    while low < high:
        middle = (low + high + 1) // 2
        model = placer.place(ModelShares.of(request.linears, fraction(middle / 1000)))
        is_within = fits(request, model, ring)
        low, high = (middle, high) if is_within else (low, middle - 1)
    return fraction(low / 1000)


def simple_plans(request: PlanRequest) -> Iterator[tuple[str, SharesOf, StreamRing]]:
    order = {linear.name: number for number, linear in enumerate(request.linears)}

    def first(part: float) -> SharesOf:
        return lambda linear: Shares(1.0 if order[linear.name] < part * len(order) else 0.0)

    def equal(part: float) -> SharesOf:
        return lambda _: Shares(part)

    def streamed(part: float) -> SharesOf:
        return lambda _: Shares(part, 1.0 - part)

    yield "all on the host", equal(0.0), NO_RING
    yield "equal shares", most(equal, request, NO_RING), NO_RING
    yield "whole layers first", most(first, request, NO_RING), NO_RING
    yield "the rest streamed", most(streamed, request, STREAMED_RING), STREAMED_RING


@pytest.mark.parametrize(
    ("budget_gib", "machine", "host_format"),
    [
        (0.6, "colab-t4", None),
        (1.2, "colab-t4", WeightFormat.INT4),
        (0.6, "laptop-6gb", WeightFormat.INT4),
        (1.2, "laptop-6gb", None),
        (0.6, "desktop-24gb", WeightFormat.INT4),
        (1.2, "desktop-24gb", None),
    ],
)
def test_a_plan_is_never_slower_than_what_other_programs_do(
    budget_gib: float, machine: str, host_format: WeightFormat | None
) -> None:
    assert_as_fast(replace(mistral(budget_gib, machine, LAYERS), host_format=host_format))


@pytest.mark.parametrize("machine", ["colab-t4", "laptop-6gb"])
def test_nor_under_a_cap_of_ram_where_columns_share_pages_of_the_file(machine: str) -> None:
    request = mistral(1.2, machine, LAYERS)
    linears = [replace(linear, layout=Layout.KN) for linear in request.linears]
    ram_bytes = sum(linear.weight_bytes for linear in linears) * 6 // 10
    assert_as_fast(replace(request, linears=linears, ram_budget_bytes=ram_bytes))


def assert_as_fast(request: PlanRequest) -> None:
    made = make_plan(request)
    for name, shares, ring in simple_plans(request):
        simple = place(request, shares, ring)
        is_within_ram = request.ram_budget_bytes is None or simple.total_ram_bytes <= request.ram_budget_bytes
        if simple.total_vram_bytes <= request.budget_bytes and is_within_ram:
            assert made.predicted.decode_step_s <= simple.predicted.decode_step_s * HARDLY, name
