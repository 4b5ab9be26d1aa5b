"""Which Linears leave RAM: no more than needed, whole, spread over the layers; and what a cap has to hold."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from offload.errors import RamBudgetError
from offload.plan.plan import HostTier, LinearPlacement
from offload.plan.ram_tiers import (
    HOST_WEIGHTS,
    READ_AHEAD,
    check_ram,
    file_bytes,
    host_ram_bytes,
    keep_in_ram,
    ram_bytes,
)
from offload.spec.linear import ColumnRange, Layout, LinearSpec, WeightFormat
from offload.spec.units import MIB

FIXED = {"kv cache": 3 * MIB, "other weights": MIB}
K = 1024


def placed(name: str, n: int, layer: int, on_device: int = 0, **changes: Any) -> LinearPlacement:
    weight_format = changes.pop("format", WeightFormat.FP16)
    column_bytes = {"fp32": 4 * K, "fp16": 2 * K, "int8": K, "int4": K * 5 // 8}[weight_format]
    layout = changes.pop("layout", Layout.NK)
    why = changes.pop("host_only", "")
    linear = LinearSpec(name, K, n, weight_format, layout, n * column_bytes, "kind", str(layer), name, why)
    host_format = changes.pop("host_format", weight_format)
    ranges = ColumnRange(0, on_device), ColumnRange(on_device, on_device), ColumnRange(on_device, n)
    return LinearPlacement(linear, *ranges, reason="", host_format=host_format, **changes)


def equal_layers(layers: int, per_layer: int = 4) -> list[LinearPlacement]:
    """Linears of 4 MiB."""
    return [placed(f"{layer}.{n}", 2048, layer) for layer in range(layers) for n in range(per_layer)]


def total(placements: Any) -> int:
    return sum(ram_bytes(placements, FIXED).values())


@st.composite
def models(draw: st.DrawFn) -> list[LinearPlacement]:
    found = []
    for number in range(draw(st.integers(0, 40))):
        n = 16 * draw(st.integers(1, 600))
        found.append(
            placed(
                str(number),
                n,
                number // 4,
                on_device=draw(st.sampled_from([0, 0, n // 2, n])),
                format=draw(st.sampled_from([WeightFormat.FP16, WeightFormat.FP32, WeightFormat.INT4])),
                host_only=draw(st.sampled_from(["", "", "onnxruntime"])),
                layout=draw(st.sampled_from([Layout.NK, Layout.NK, Layout.KN])),
            )
        )
    return found


@given(models(), st.integers(0, 600))
def test_the_rest_fits_and_nothing_leaves_ram_in_vain(placements: list[LinearPlacement], budget_mib: int) -> None:
    budget = budget_mib * MIB
    kept = keep_in_ram(placements, FIXED, budget)
    assert kept == keep_in_ram(placements, FIXED, budget)
    assert [(p.linear, p.host) for p in kept] == [(p.linear, p.host) for p in placements]
    out = [p for p in kept if p.tier is HostTier.FILE]
    assert all(not p.linear.host_only_reason and len(p.host) for p in out)
    if total(placements) <= budget:
        assert not out
        return
    movable = [p for p in placements if len(p.host) and not p.linear.host_only_reason]
    if total(kept) > budget:  # not even all of them are enough
        assert len(out) == len(movable)
    ring = ram_bytes(kept, FIXED)[READ_AHEAD]
    whole_ring = ram_bytes(keep_in_ram(placements, FIXED, 0), FIXED)[READ_AHEAD]
    for placement in out:
        size = host_ram_bytes(placements[kept.index(placement)])
        assert total(kept) - ring + whole_ring + size > budget


def test_what_is_read_is_spread_evenly_over_the_layers() -> None:
    placements = equal_layers(32)
    kept = keep_in_ram(placements, FIXED, total(placements) // 2)
    by_layer: dict[str, int] = {}
    for placement in kept:
        by_layer[placement.linear.layer] = by_layer.get(placement.linear.layer, 0) + (placement.tier is HostTier.FILE)
    assert max(by_layer.values()) - min(by_layer.values()) <= 1


def test_a_cap_that_holds_everything_leaves_everything() -> None:
    placements = equal_layers(2)
    assert keep_in_ram(placements, FIXED, total(placements)) == tuple(placements)
    assert keep_in_ram(placements, FIXED, None) == tuple(placements)
    assert total(placements) == (2 * 4 * 4 + 4) * MIB


def test_one_byte_less_moves_as_little_as_pays_for_the_buffers() -> None:
    placements = equal_layers(32)
    kept = keep_in_ram(placements, FIXED, total(placements) - 1)
    buffers = ram_bytes(kept, FIXED)[READ_AHEAD]
    assert buffers < file_bytes(kept) <= buffers + 4 * MIB + 1
    assert total(kept) < total(placements)


@pytest.mark.parametrize("changes", [{"host_format": WeightFormat.INT8}, {"prefill_stop": 16}], ids=str)
def test_what_leaves_ram_is_read_as_it_is_in_the_file_and_never_streamed(changes: dict[str, Any]) -> None:
    placement = placed("a", 40_960, 0, **changes)
    (kept,) = keep_in_ram([placement], FIXED, 0)
    assert (kept.tier, kept.host_format, kept.prefill_stop) == (HostTier.FILE, WeightFormat.FP16, 0)


@pytest.mark.parametrize("layout", Layout)
def test_only_host_columns_count(layout: Layout) -> None:
    assert host_ram_bytes(placed("a", 64, 0, on_device=32, layout=layout)) == K * 32 * 2
    assert host_ram_bytes(placed("a", 64, 0, on_device=64, layout=layout)) == 0


def test_a_cap_that_cannot_be_kept_names_what_it_holds_and_the_least_that_would_do() -> None:
    quantised = [placed("q", 4096, 0, format=WeightFormat.INT8, host_only="onnxruntime")]
    taken = ram_bytes(keep_in_ram(quantised, FIXED, 2 * MIB), FIXED)
    assert taken[HOST_WEIGHTS] == 4 * MIB
    with pytest.raises(RamBudgetError) as caught:
        check_ram(taken, 2 * MIB)
    assert caught.value.least_bytes == 8 * MIB
    for words in ("--ram of 2.00 MiB", "at the least", "8.00 MiB", "kv cache 3.00 MiB", "must be in RAM 4.00 MiB"):
        assert words in str(caught.value)
    for most, can_raise in ((0, True), (8 * MIB, True), (7 * MIB, False)):
        with pytest.raises(RamBudgetError) as told:
            check_ram(taken, 2 * MIB, most)
        assert ("raise --ram" in str(told.value)) == can_raise
    check_ram(taken, 8 * MIB)
    check_ram(taken, None)
