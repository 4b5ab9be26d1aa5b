"""More VRAM or RAM never makes the predicted step slower: random models, machines and budgets."""

from collections.abc import Sequence
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from offload.devices.simulated.rates import same_rate
from offload.errors import RamBudgetError
from offload.machine.profile import CpuRates, DeviceProfile, GpuRates
from offload.plan.placing import NO_RING, place
from offload.plan.plan import Plan
from offload.plan.planner import make_plan
from offload.plan.request import PlanRequest
from offload.plan.shares import Shares
from offload.spec.linear import Layout, LinearSpec, WeightFormat
from offload.spec.step import AttentionWork
from offload.spec.units import GIB, MIB
from tests.unit.plan.steps import step_of

ROUNDING = 1.002  # the second solve gives up a thousandth, ties another
A_FIFTIETH = 1 / 0.98
FLOATS = [WeightFormat.FP32, WeightFormat.FP16, WeightFormat.BF16]


@st.composite
def models(draw: st.DrawFn) -> list[LinearSpec]:
    """A few layers of attention and feed-forward, and a head."""
    hidden, inner, vocabulary = (16 * draw(st.integers(8, 160)) for _ in range(3))
    layout = draw(st.sampled_from([*Layout]))
    body, head = draw(st.sampled_from(FLOATS)), draw(st.sampled_from(FLOATS))

    def spec(layer: str, kind: str, k: int, n: int, weight_format: WeightFormat) -> LinearSpec:
        group = kind if kind in ("o", "down", "head") else "qkv" if kind in "qkv" else "up"
        nbytes = k * n * weight_format.itemsize_bytes
        return LinearSpec(f"{layer}.{kind}", k, n, weight_format, layout, nbytes, kind, layer, f"{layer}.{group}")

    shapes = [("q", hidden, hidden), ("k", hidden, 64), ("v", hidden, 64), ("o", hidden, hidden)]
    shapes += [("gate", hidden, inner), ("up", hidden, inner), ("down", inner, hidden)]
    layers = range(draw(st.integers(2, 4)))
    linears = [spec(str(layer), *shape, body) for layer in layers for shape in shapes]
    return [*linears, spec("", "head", hidden, vocabulary, head)]


@st.composite
def machines(draw: st.DrawFn) -> DeviceProfile:
    """From a laptop to a server; a GPU may be slower than its CPU."""
    ram, vram, bus = (draw(st.sampled_from(rates)) * 1e9 for rates in ((8, 20, 60), (100, 300, 1500), (3, 12, 50)))
    part = draw(st.floats(0.3, 1))
    multiply = {str(name): {1: ram * part, 8: ram * part / 2, 128: ram * part / 30} for name in WeightFormat}
    island_s, round_trip_s, launch_s, copy_s = (draw(st.floats(1e-6, most)) for most in (5e-5, 1e-4, 1e-5, 2e-5))
    cpu = CpuRates(
        2, 64 * GIB, ram, ram * draw(st.floats(0.4, 1)), 1e9, multiply, ram / 2, ram * 8, island_s, 5e-6, 1e-4
    )
    gpu = GpuRates(
        "g", 24 * GIB, vram, same_rate(vram * 100), bus, bus, bus / 2, copy_s, round_trip_s, launch_s, MIB, MIB
    )
    return DeviceProfile("m", True, cpu, gpu)


def request(linears: Sequence[LinearSpec], profile: DeviceProfile, budget_bytes: int) -> PlanRequest:
    return PlanRequest(
        model="m",
        linears=linears,
        profile=profile,
        budget_bytes=budget_bytes,
        fixed_vram_bytes={"context": 3 * MIB, "workspace": MIB},
        other_ram_bytes={},
        step=step_of(linears, AttentionWork(1024, 4096)),
    )


def may_lose_a_fiftieth(less: Plan, more: Plan) -> bool:
    """For a much faster prefill, or with everything on the device."""
    holds_all = not any(len(p.host) + len(p.streamed) for p in more.placements)
    return holds_all or more.prefill.step_s < 0.8 * less.prefill.step_s


def one_tile_each_s(asked: PlanRequest) -> float:
    """Time the host for a tile of 16 columns of every Linear: so far may rounding unbalance the levels."""
    rates = asked.profile.cpu.multiply_bytes_per_s
    return sum(16 * linear.column_bytes / rates[linear.format][1] for linear in asked.linears)


# The same examples every time: in models of one layer and a few MiB, what is found depends on where the search begins.
@settings(max_examples=5, deadline=None, derandomize=True)
@given(models(), machines(), st.lists(st.floats(0.01, 1.2), min_size=2, max_size=2).map(sorted))
def test_more_vram_is_never_slower(linears: list[LinearSpec], profile: DeviceProfile, parts: list[float]) -> None:
    whole = sum(linear.weight_bytes for linear in linears) + 12 * MIB
    asked = [request(linears, profile, int(part * whole)) for part in parts]
    less, more = map(make_plan, asked)
    most = A_FIFTIETH if may_lose_a_fiftieth(less, more) else 1.0
    tile_s = one_tile_each_s(asked[0])
    assert more.predicted.decode_step_s <= less.predicted.decode_step_s * ROUNDING * most + tile_s


@settings(max_examples=3, deadline=None, derandomize=True)
@given(models(), machines(), st.floats(0.05, 1.1), st.lists(st.floats(0.3, 1.6), min_size=2, max_size=2).map(sorted))
def test_more_ram_is_never_slower(
    linears: list[LinearSpec], profile: DeviceProfile, vram: float, parts: list[float]
) -> None:
    whole = sum(linear.weight_bytes for linear in linears) + 12 * MIB
    asked = [
        replace(request(linears, profile, int(vram * whole)), ram_budget_bytes=int(part * whole)) for part in parts
    ]
    try:
        less, more = map(make_plan, asked)
    except RamBudgetError:
        return
    most = A_FIFTIETH if may_lose_a_fiftieth(less, more) else 1.0
    assert more.predicted.decode_step_s <= less.predicted.decode_step_s * ROUNDING * most + one_tile_each_s(asked[0])


@settings(max_examples=4, deadline=None)
@given(models(), machines(), st.floats(0.05, 1.2), st.sampled_from([None, 0.3, 0.7, 1.5]))
def test_a_plan_is_never_slower_than_the_cpu_alone(
    linears: list[LinearSpec], profile: DeviceProfile, part: float, ram: float | None
) -> None:
    whole = sum(linear.weight_bytes for linear in linears) + 12 * MIB
    asked = request(linears, profile, int(part * whole))
    if ram is not None:
        asked = replace(asked, ram_budget_bytes=int(ram * whole))
    try:
        plan = make_plan(asked)
    except RamBudgetError:
        return
    assert plan.total_vram_bytes <= asked.budget_bytes
    assert asked.ram_budget_bytes is None or plan.total_ram_bytes <= asked.ram_budget_bytes
    on_host = place(asked, lambda _: Shares(), NO_RING)
    on_host_fits = asked.ram_budget_bytes is None or on_host.total_ram_bytes <= asked.ram_budget_bytes
    assert not on_host_fits or plan.predicted.decode_step_s <= on_host.predicted.decode_step_s
