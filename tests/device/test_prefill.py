"""Prefill that streams more than decode does: the same numbers, from host columns that the device reads in place."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from offload.devices.cuda.device import CudaDevice
from offload.errors import PinningError
from offload.plan.plan import HostTier, LinearPlacement
from offload.run.runner import LinearRunner
from offload.spec.linear import Layout, LinearSpec
from offload.storage.stored_weight import StoredWeight
from offload.weights.host_columns import host_columns
from tests.device.emulated_cupy import EmulatedCupy
from tests.device.support import NumpyHost, NumpyHostGroup, as_stored, in_file, in_one_block, linear, make_plan, place
from tests.device.test_runner import BF16, CHUNK, FP16, SLOT_BYTES, SLOTS, Model

PREFILL = 4  # tokens from which on a step is prefill

SHARES: dict[str, Callable[[LinearSpec], tuple[float, float, float]]] = {
    "three ways, more in prefill": lambda spec: (0.25, 0.25, 0.25),
    "three ways, no host columns in prefill": lambda spec: (0.25, 0.25, 0.5),
    "nothing streamed in decode": lambda spec: (0.5, 0.0, 0.5),
    "all host in decode": lambda spec: (0.0, 0.0, 1.0),
    "one layer in prefill": lambda spec: (0.25, 0.25, 0.5) if spec.name[-1] == "1" else (0.5, 0.25, 0.0),
    "one Linear of a group": lambda spec: (0.0, 0.25, 0.5) if spec.name[0] in "kg" else (0.25, 0.0, 0.0),
}


def placed(model: Model, shares: str) -> list[LinearPlacement]:
    return [place(spec, *SHARES[shares](spec)) for spec in model.linears]


def make_runner(
    model: Model, shares: str, device: Any, host_weights: Mapping[str, StoredWeight] | None = None
) -> LinearRunner:
    plan = make_plan(placed(model, shares), CHUNK, SLOTS, SLOT_BYTES, prefill_tokens=PREFILL)
    host_weights = host_columns(plan.placements, host_weights or in_one_block(model.weights))
    return LinearRunner(model.names, plan, model.weights, device, NumpyHost(), host_weights=host_weights)


def run_steps(model: Model, runner: LinearRunner) -> None:
    for tokens in (17, 4, 1, 3, 20, 1):
        for level in range(len(model.levels)):
            model.run(runner, level, tokens)


@pytest.mark.parametrize(
    ("shares", "layout"), [(next(iter(SHARES)), Layout.KN), *zip(SHARES, [Layout.NK, Layout.KN] * 3, strict=True)]
)
def test_prefill_and_decode_take_turns(device: Any, shares: str, layout: Layout) -> None:
    model = Model(FP16, layout)
    runner = make_runner(model, shares, device)
    assert runner.warning == ""
    run_steps(model, runner)
    runner.close()


def test_mixed_formats_and_layouts_in_one_group(device: Any) -> None:
    if reason := device.supports(BF16):
        pytest.skip(reason)
    model = Model(FP16, mixed=True)
    runner = make_runner(model, "three ways, more in prefill", device)
    run_steps(model, runner)
    runner.close()


def test_levels_may_be_left_out_in_between(device: Any) -> None:
    model = Model()
    runner = make_runner(model, "three ways, more in prefill", device)
    for level, tokens in ((0, 9), (2, 9), (1, 1), (8, 9), (8, 1), (8, 1), (0, 9), (5, 1), (2, 9)):
        model.run(runner, level, tokens)
    runner.close()


def test_an_error_on_the_host_leaves_the_runner_usable(device: Any) -> None:
    model = Model()
    runner = make_runner(model, "three ways, more in prefill", device)
    for tokens in (5, 1, 5):
        with pytest.raises(KeyError):
            runner.run(0, {"qkv0": np.ones((tokens, 48), np.float32)}, {})
    run_steps(model, runner)
    runner.close()


def columns_on_host(model: Model, runner: LinearRunner, tokens: int, monkeypatch: pytest.MonkeyPatch) -> int:
    """The columns that the host multiplies in one walk over the levels."""
    counts: list[int] = []
    multiply = NumpyHostGroup.multiply

    def count(group: NumpyHostGroup, x: Any, outputs: Any) -> None:
        counts.extend(part.stop - part.start for part in group._columns)
        multiply(group, x, outputs)

    with monkeypatch.context() as patch:
        patch.setattr(NumpyHostGroup, "multiply", count)
        for level in range(len(model.levels)):
            model.run(runner, level, tokens)
    return sum(counts)


def test_the_host_multiplies_less_in_prefill(device: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Model()
    columns = sum(spec.out_features for spec in model.linears)
    runner = make_runner(model, "three ways, more in prefill", device)
    assert columns_on_host(model, runner, PREFILL - 1, monkeypatch) == columns // 2
    assert columns_on_host(model, runner, PREFILL, monkeypatch) == columns // 4
    runner.close()


def test_a_plan_without_prefill_tokens_pins_nothing(device: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Model()
    monkeypatch.setattr(device, "pin", None)
    plan = make_plan(placed(model, "three ways, more in prefill"), CHUNK, SLOTS, SLOT_BYTES)
    runner = LinearRunner(model.names, plan, model.weights, device, NumpyHost())
    run_steps(model, runner)
    runner.close()


def test_only_the_pages_that_prefill_streams_are_pinned(device: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A weight of 4096 columns of 64 bytes: columns 2048 to 3072 of it are 64 KiB."""
    spec = linear("q", "q", 32, 4096)
    weights = in_one_block({"q": as_stored(spec, np.ones((4096, 32), np.float16))})
    pinned: list[int] = []
    pin, unpin = device.pin, device.unpin
    monkeypatch.setattr(device, "pin", lambda part: pinned.append(part.nbytes) or pin(part))
    monkeypatch.setattr(device, "unpin", lambda part: pinned.remove(part.nbytes) or unpin(part))
    plan = make_plan([place(spec, 0.25, 0.25, 0.25)], CHUNK, SLOTS, SLOT_BYTES, prefill_tokens=PREFILL)
    runner = LinearRunner([["q"]], plan, weights, device, NumpyHost())
    assert len(pinned) == 1
    assert 64 << 10 <= pinned[0] <= (64 + 8) << 10
    runner.close()
    assert pinned == []


def refused(part: Any) -> None:
    raise PinningError("no more than 64 KiB may be locked")


def test_prefill_streams_as_decode_does_where_pinning_fails(device: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Model()
    monkeypatch.setattr(device, "pin", refused)
    runner = make_runner(model, "three ways, more in prefill", device)
    assert runner.warning == "prefill streams no host columns: no more than 64 KiB may be locked"
    columns = sum(spec.out_features for spec in model.linears)
    assert columns_on_host(model, runner, PREFILL, monkeypatch) == columns // 2
    run_steps(model, runner)
    runner.close()


def test_a_mapped_file_is_never_pinned(device: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Model()
    monkeypatch.setattr(device, "pin", None)
    mapped = in_one_block(model.weights)
    mapped |= in_file({"q0": mapped["q0"]}, tmp_path / "weight")
    runner = make_runner(model, "three ways, more in prefill", device, mapped)
    assert runner.warning == (
        "prefill streams no host columns: the host columns of q0 are in a mapped file, not in memory of our own"
    )
    run_steps(model, runner)
    runner.close()


def test_cuda_says_why_it_cannot_pin(monkeypatch: pytest.MonkeyPatch) -> None:
    emulated = EmulatedCupy()
    emulated.install(monkeypatch)
    device = CudaDevice()
    block = np.zeros(8192, np.uint8)
    device.pin(block)
    assert list(emulated.registered) == [block.ctypes.data]
    device.unpin(block)
    assert emulated.registered == {}
    emulated.register_error = 801
    with pytest.raises(PinningError, match=r"^8,192 bytes of RAM cannot be page-locked: cudaError 801$"):
        device.pin(block)


def test_columns_that_are_not_in_ram_are_not_for_prefill() -> None:
    spec = linear("q", "q", 64, 64)
    whole = place(spec, 0.25, 0.25, 0.25)
    with pytest.raises(ValueError, match="q: prefill cannot stream host columns of tier file"):
        LinearPlacement(**{**vars(whole), "tier": HostTier.FILE})
    LinearPlacement(**{**vars(whole), "tier": HostTier.FILE, "prefill_stop": whole.streamed.stop})
