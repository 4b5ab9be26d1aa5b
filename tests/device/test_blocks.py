"""LinearRunner with block-quantised weights, stored or made on load, against float64, on every device."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from offload.plan.plan import LinearPlacement
from offload.plan.scratch import MAX_ROWS
from offload.run.runner import LinearRunner
from offload.spec.linear import Activations, BlockFormat, Layout, LinearSpec, WeightFormat
from offload.storage.stored_weight import StoredWeight
from offload.weights.host_columns import host_columns, load_host_columns
from tests.device.support import (
    NumpyHost,
    as_stored,
    blocks_linear,
    in_one_block,
    linear,
    make_plan,
    place,
    random_stored,
    to_float64,
)
from tests.quantised import Array, exact, random_weight, seen

CHUNK, SLOTS, SLOT_BYTES = 20, 2, 4096
PREFILL = 12  # tokens from which on a step is prefill
FP32, FP16, INT8, INT4 = WeightFormat.FP32, WeightFormat.FP16, WeightFormat.INT8, WeightFormat.INT4
KINDS = (
    BlockFormat(4, 32, FP32, zeros=True),
    BlockFormat(4, 64, FP16),
    BlockFormat(8, 16, FP16, zeros=True),
    BlockFormat(8, 128, FP32),
)
SHARES = {"three ways": (0.3, 0.4, 0.0), "all resident": (1.0, 0.0, 0.0), "more in prefill": (0.25, 0.25, 0.25)}


@pytest.fixture(autouse=True)
def needs_blocks(device: Any) -> None:
    if reason := device.supports(INT4):
        pytest.skip(reason)


def qkv(blocks: BlockFormat, activations: Activations) -> list[LinearSpec]:
    """100 features, so that no block size divides them."""
    return [blocks_linear(name, "qkv", 100, columns, blocks, activations) for name, columns in (("q", 64), ("v", 37))]


def stored(specs: Sequence[LinearSpec]) -> dict[str, StoredWeight]:
    """Random weights, in one block of memory as host columns are: a page can be pinned only once."""
    weights = {}
    for spec in specs:
        assert spec.blocks is not None
        scale_type = np.float16 if spec.blocks.scales is FP16 else np.float32
        sizes = spec.out_features, spec.in_features
        made = random_weight(*sizes, spec.format, spec.blocks.block, scale_type, spec.blocks.zeros)
        weights[spec.name] = made
    return in_one_block(weights)


def check(
    runner: LinearRunner, placements: Sequence[LinearPlacement], values: dict[str, Array], tokens: int, block: int
) -> None:
    """Run one step of `tokens` tokens; `values` has W[N, K] as streamed and host columns are block-quantised, and as
    resident ones are under the name of the Linear and "resident".
    """
    first = placements[0].linear
    x = np.random.default_rng(tokens).standard_normal((tokens, first.in_features)).astype(np.float32)
    outputs = {p.linear.name: np.full((tokens, p.linear.out_features), np.nan, np.float32) for p in placements}
    runner.run(0, {first.group: x}, outputs)
    for placement in placements:
        name = placement.linear.name
        rounded = seen(x, block, placement.linear.activations)
        expected, magnitudes = rounded @ values[name].T, np.abs(rounded) @ np.abs(values[name]).T
        if tokens > MAX_ROWS:
            # A device multiplies so many rows as fp16, both operands rounded, and x as it is.
            on_device = slice(0, placement.host_in(tokens >= PREFILL).start)
            expected[:, on_device] = x @ values[name].T[:, on_device]
            magnitudes = 100 * (np.abs(x) @ np.abs(values[name]).T)
        if f"{name} resident" in values:
            held = slice(0, placement.resident.stop)
            expected[:, held] = x @ values[f"{name} resident"].T[:, held]
        assert np.all(np.abs(outputs[name] - expected) <= 1e-5 * magnitudes + 1e-7), name


def runner_of(
    specs: Sequence[LinearSpec], placements: Sequence[LinearPlacement], device: Any, weights: Any, host: Any = None
) -> LinearRunner:
    plan = make_plan(placements, CHUNK, SLOTS, SLOT_BYTES, prefill_tokens=PREFILL)
    names = [[spec.name for spec in specs]]
    return LinearRunner(
        names, plan, weights, device, NumpyHost(), host_weights=host_columns(placements, host or weights)
    )


@pytest.mark.parametrize("blocks", KINDS[::2], ids=str)
def test_resident_blocks_are_staged_in_bounded_parts(
    device: Any, blocks: BlockFormat, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("offload.plan.packing.STAGING_BYTES", 4096)
    specs = qkv(blocks, Activations.INT8)
    weights, placements = stored(specs), [place(spec, 1.0, 0.0, 0.0) for spec in specs]
    loaded: list[int] = []
    plan = make_plan(placements, CHUNK, SLOTS, SLOT_BYTES)
    runner = LinearRunner([["q", "v"]], plan, weights, device, NumpyHost(), on_bytes=loaded.append)
    assert len(loaded) > 2
    assert max(loaded) <= 2048
    for tokens in (1, 17):
        check(runner, placements, {name: exact(weight) for name, weight in weights.items()}, tokens, blocks.block)
    runner.close()


@pytest.mark.parametrize("activations", Activations)
@pytest.mark.parametrize("shares", SHARES)
@pytest.mark.parametrize("blocks", KINDS, ids=str)
def test_stored_blocks(device: Any, blocks: BlockFormat, shares: str, activations: Activations) -> None:
    specs = qkv(blocks, activations)
    weights, placements = stored(specs), [place(spec, *SHARES[shares]) for spec in specs]
    runner = runner_of(specs, placements, device, weights)
    assert runner.warning == ""
    values = {name: exact(weight) for name, weight in weights.items()}
    for tokens in (1, 17, 3, 20, 8, 9, 1):
        check(runner, placements, values, tokens, blocks.block)
    runner.close()


@pytest.mark.parametrize("layout", Layout)
@pytest.mark.parametrize("host_format", [INT8, INT4])
def test_streamed_and_host_columns_are_quantised_alike_on_load(
    device: Any, host_format: WeightFormat, layout: Layout
) -> None:
    """Resident columns stay fp16, and the others are what `load_host_columns` makes of all."""
    rng = np.random.default_rng(7)
    specs = [linear(name, "qkv", 100, columns, FP16, layout) for name, columns in (("q", 64), ("v", 48))]
    weights = {
        s.name: as_stored(s, random_stored(rng, (100, s.out_features)[:: 1 if layout is Layout.KN else -1], FP16))
        for s in specs
    }
    all_host = [place(spec, 0, 0, host_format=host_format) for spec in specs]
    made = load_host_columns(all_host, weights, True, lambda nbytes: None)
    placements = [place(spec, 0.25, 0.5, host_format=host_format) for spec in specs]
    runner = runner_of(specs, placements, device, weights, host=made)
    values = {name: exact(weight) for name, weight in made.items()}
    for name, weight in weights.items():
        floats = to_float64(weight.arrays[0].array(), FP16)
        values[f"{name} resident"] = floats.T if layout is Layout.KN else floats
    for tokens in (1, 9, 3):
        check(runner, placements, values, tokens, 64)
    runner.close()


def test_weights_in_other_blocks_are_refused(device: Any) -> None:
    specs = qkv(KINDS[0], Activations.FLOAT)
    weights = stored(qkv(KINDS[1], Activations.FLOAT))
    with pytest.raises(ValueError, match=r"q: expected a weight .*zeros=True\), not .*zeros=False"):
        runner_of(specs, [place(spec, 1, 0) for spec in specs], device, weights)
