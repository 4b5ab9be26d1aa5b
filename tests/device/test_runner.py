"""LinearRunner against float64, for placements, formats and numbers of tokens, on every device."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from offload.devices.simulated.device import SimulatedDevice
from offload.errors import DeviceUnavailableError, OutOfDeviceMemoryError
from offload.observe.timeline import Timeline
from offload.plan.packing import packed_stream_bytes, resident_bytes, working_memory
from offload.plan.plan import LinearPlacement
from offload.run.runner import LinearRunner
from offload.spec.arrays import ALIGNMENT_BYTES
from offload.spec.linear import Layout, LinearSpec, WeightFormat
from offload.storage.stored_weight import StoredWeight
from tests.device.support import (
    NumpyHost,
    NumpyHostGroup,
    as_stored,
    linear,
    make_plan,
    place,
    random_stored,
    to_float64,
    to_stored,
)

CHUNK, SLOTS, SLOT_BYTES = 20, 2, 2048
FP32, FP16, BF16 = WeightFormat.FP32, WeightFormat.FP16, WeightFormat.BF16


class Model:
    """Two layers of q/k/v, o and gate/up, and a head; every level also has what its Linears should give."""

    def __init__(self, weight_format: WeightFormat = FP16, layout: Layout = Layout.NK, mixed: bool = False) -> None:
        self.levels: list[list[LinearSpec]] = []
        for layer in range(2):
            self.levels.append([linear(f"q{layer}", f"qkv{layer}", 48, 64, weight_format, layout)])
            other = BF16 if mixed else weight_format
            self.levels[-1].append(linear(f"k{layer}", f"qkv{layer}", 48, 32, other, layout))
            self.levels[-1].append(linear(f"v{layer}", f"qkv{layer}", 48, 32, other, Layout.KN if mixed else layout))
            self.levels.append([linear(f"o{layer}", f"o{layer}", 64, 48, FP32 if mixed else weight_format, layout)])
            # Two groups at one level, as in models whose attention and MLP run side by side.
            self.levels.append([linear(f"gate{layer}", f"gate{layer}", 48, 96, weight_format, layout)])
            self.levels[-1].append(linear(f"up{layer}", f"up{layer}", 48, 96, weight_format, layout))
            self.levels.append([])
        self.levels.append([linear("head", "head", 48, 200, weight_format, layout)])
        rng = np.random.default_rng(4)
        self.linears = [spec for level in self.levels for spec in level]
        self.weights: dict[str, StoredWeight] = {}
        for spec in self.linears:
            shape = (spec.in_features, spec.out_features)
            shape = shape[:: 1 if spec.layout is Layout.KN else -1]
            self.weights[spec.name] = as_stored(spec, random_stored(rng, shape, spec.format))
        self.names = [[spec.name for spec in level] for level in self.levels]

    def run(self, runner: LinearRunner, level: int, tokens: int, scale: float = 1.0) -> None:
        """Run a level on new inputs and compare."""
        rng = np.random.default_rng(tokens)
        specs = self.levels[level]
        inputs = {
            group: (scale * rng.standard_normal((tokens, features))).astype(np.float32)
            for group, features in {spec.group: spec.in_features for spec in specs}.items()
        }
        # NaN, so that a column nobody writes is seen.
        outputs = {spec.name: np.full((tokens, spec.out_features), np.nan, np.float32) for spec in specs}
        runner.run(level, inputs, outputs)
        for spec in specs:
            weight = to_float64(self.weights[spec.name].arrays[0].array(), spec.format)
            weight = weight if spec.layout is Layout.KN else weight.T
            x = inputs[spec.group]
            one = np.float32(scale)
            rounded = to_float64(to_stored(x / one, spec.format), spec.format) * scale
            # Host columns use x as it is, device columns may round it to the weight's format first.
            bound = np.abs(rounded - x) @ np.abs(weight) + 1e-5 * (np.abs(x) @ np.abs(weight))
            assert np.all(np.abs(outputs[spec.name] - x @ weight) <= bound), spec.name


PLACEMENTS: dict[str, Callable[[LinearSpec], tuple[float, float]]] = {
    "all resident": lambda spec: (1.0, 0.0),
    "all streamed": lambda spec: (0.0, 1.0),
    "all host": lambda spec: (0.0, 0.0),
    "half resident": lambda spec: (0.5, 0.0),
    "half streamed": lambda spec: (0.0, 0.5),
    "three ways": lambda spec: (0.3, 0.4),
    "some levels on the host": lambda spec: (0.4, 0.3) if spec.name[-1] == "0" else (0.0, 0.0),
    "one Linear of a group": lambda spec: (0.5, 0.5) if spec.name[0] in "kg" else (0.0, 0.0),
}


def placed(model: Model, where: str) -> list[LinearPlacement]:
    return [place(spec, *PLACEMENTS[where](spec)) for spec in model.linears]


def make_runner(model: Model, placements: Sequence[LinearPlacement], device: Any, **options: Any) -> LinearRunner:
    plan = make_plan(placements, CHUNK, SLOTS, SLOT_BYTES)
    return LinearRunner(model.names, plan, model.weights, device, NumpyHost(), **options)


def run_steps(model: Model, runner: LinearRunner) -> None:
    for tokens in (1, 17, 3, 20, 1):
        for level in range(len(model.levels)):
            model.run(runner, level, tokens)


@pytest.mark.parametrize(
    ("where", "layout"), [("three ways", Layout.KN), *zip(PLACEMENTS, [Layout.KN, Layout.NK] * 4, strict=True)]
)
def test_placements(device: Any, where: str, layout: Layout) -> None:
    model = Model(FP16, layout)
    runner = make_runner(model, placed(model, where), device)
    run_steps(model, runner)
    runner.close()


@pytest.mark.parametrize("scale", [2.0**40, 2.0**-40])
@pytest.mark.parametrize("mixed", [False, True])
def test_activations_that_do_not_fit_fp16(device: Any, scale: float, mixed: bool) -> None:
    """Neither infinite nor lost, whoever rounds them; in groups of several formats too."""
    if mixed and device.supports(BF16):
        pytest.skip(device.supports(BF16))
    model = Model(FP16, mixed=mixed)
    runner = make_runner(model, placed(model, "three ways"), device)
    for tokens in (1, 17):
        for level in range(len(model.levels)):
            model.run(runner, level, tokens, scale=scale)
    runner.close()


@pytest.mark.parametrize("where", ["three ways", "half streamed", "one Linear of a group"])
def test_mixed_formats_and_layouts_in_one_group(device: Any, where: str) -> None:
    if reason := device.supports(BF16):
        pytest.skip(reason)
    model = Model(FP16, mixed=True)
    runner = make_runner(model, placed(model, where), device)
    run_steps(model, runner)
    runner.close()


@pytest.mark.parametrize("weight_format", [FP32, BF16])
def test_formats(device: Any, weight_format: WeightFormat) -> None:
    if reason := device.supports(weight_format):
        pytest.skip(reason)
    model = Model(weight_format)
    runner = make_runner(model, placed(model, "three ways"), device)
    run_steps(model, runner)
    runner.close()


def test_levels_may_be_left_out(device: Any) -> None:
    model = Model()
    runner = make_runner(model, placed(model, "three ways"), device)
    for level in (0, 1, 2, 0, 2, 8, 8, 5, 1):
        model.run(runner, level, tokens=3)
    runner.close()


def test_host_columns_run_once_however_often_the_device_does(device: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """20 tokens of gate and up are too many for one pass: the buffers fit the widest group, not both."""
    model = Model()
    runner = make_runner(model, placed(model, "half resident"), device)
    queued: list[int] = []
    assert runner._work is not None
    monkeypatch.setattr(runner._work, "queue", lambda step, inputs: queued.append(len(step.multiplications)) or {})
    calls: list[int] = []
    monkeypatch.setattr(NumpyHostGroup, "multiply", lambda group, x, outputs: calls.append(len(outputs)))
    x = np.zeros((20, 48), np.float32)
    y = np.zeros((20, 96), np.float32)
    runner.run(2, {"gate0": x, "up0": x}, {"gate0": y, "up0": y})
    assert (queued, calls) == ([1, 1], [1, 1])
    runner.run(2, {"gate0": x[:1], "up0": x[:1]}, {"gate0": y[:1], "up0": y[:1]})
    assert (queued[2:], calls[2:]) == ([2], [1, 1])
    runner.close()


def test_an_error_on_the_host_leaves_the_runner_usable(device: Any) -> None:
    model = Model()
    runner = make_runner(model, placed(model, "three ways"), device)
    x = np.ones((1, 48), np.float32)
    with pytest.raises(KeyError):  # no outputs: the host columns fail while the device is at work
        runner.run(0, {"qkv0": x}, {})
    run_steps(model, runner)
    runner.close()


@pytest.mark.parametrize("where", PLACEMENTS)
def test_allocates_what_the_plan_can_compute(device: Any, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Model()
    placements = placed(model, where)
    before = device.memory().free_bytes
    asked: dict[str, list[int]] = {"allocate": [], "allocate_pinned": []}
    for name, sizes in asked.items():
        allocate = getattr(device, name)
        monkeypatch.setattr(device, name, lambda n, sizes=sizes, allocate=allocate: sizes.append(n) or allocate(n))
    runner = make_runner(model, placements, device)

    streams = any(len(placement.streamed) for placement in placements)
    ring_bytes = SLOTS * SLOT_BYTES if streams else 0
    working = working_memory(placements, CHUNK)
    assert sum(asked["allocate"]) == resident_bytes(placements) + working.device_bytes + ring_bytes
    staging = asked["allocate_pinned"].pop() if resident_bytes(placements) else 0
    assert sum(asked["allocate_pinned"]) == packed_stream_bytes(placements) + working.pinned_bytes
    assert staging <= 64 << 20

    if runner._work is not None:
        assert all(weight.offset_bytes % ALIGNMENT_BYTES == 0 for weight in runner._work.store.weights)
    sizes = [len(sizes) for sizes in asked.values()]
    run_steps(model, runner)
    assert [len(sizes) for sizes in asked.values()] == sizes, "a step allocated"
    runner.close()
    assert device.memory().free_bytes == before


def test_weights_are_staged_in_bounded_parts(device: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("offload.plan.packing.STAGING_BYTES", 4096)
    monkeypatch.setattr("offload.weights.store.PINNED_BLOCK_BYTES", 4096)
    loaded: list[int] = []
    for layout in Layout:
        model = Model(FP16, layout)
        loaded.clear()
        runner = make_runner(model, placed(model, "three ways"), device, on_bytes=loaded.append)
        assert sum(loaded) == sum(
            2 * placement.linear.in_features * (len(placement.resident) + len(placement.streamed))
            for placement in placed(model, "three ways")
        )
        assert max(loaded) <= 2048
        run_steps(model, runner)
        runner.close()


def test_no_device_is_needed_without_device_columns() -> None:
    model = Model()
    runner = make_runner(model, placed(model, "all host"), None)
    run_steps(model, runner)
    runner.close()


def test_refuses_what_does_not_fit() -> None:
    model = Model()
    device = SimulatedDevice(1 << 20)
    placements = placed(model, "three ways")
    plan = make_plan(placements, CHUNK, SLOTS, SLOT_BYTES)

    def build(levels: list[list[str]], weights: Any = model.weights, on: Any = device) -> LinearRunner:
        return LinearRunner(levels, plan, weights, on, NumpyHost())

    with pytest.raises(ValueError, match="none was given"):
        build(model.names, on=None)
    with pytest.raises(ValueError, match="no host backend was given"):
        LinearRunner(model.names, plan, model.weights, device, None)
    assert device.memory().free_bytes == 1 << 20
    with pytest.raises(ValueError, match="no level runs it"):
        build(model.names[:-1])
    with pytest.raises(ValueError, match="runs twice"):
        build([*model.names, ["head"]])
    with pytest.raises(ValueError, match="more than one level"):
        build([["q0"], ["k0", "v0"]])
    zeros = np.zeros((64, 64), np.float16)
    with pytest.raises(ValueError, match="q0: expected a weight of 48 to 64 features"):
        build(model.names, weights=model.weights | {"q0": as_stored(linear("q0", "", 64, 64), zeros)})
    runner = build(model.names)
    with pytest.raises(ValueError, match="1 to 20 tokens, not 21"):
        model.run(runner, 0, 21)
    runner.close()
    assert device.memory().free_bytes == 1 << 20
    device.supports = lambda weight_format: "no kernel"  # type: ignore[method-assign]
    with pytest.raises(DeviceUnavailableError, match="q0: no kernel"):
        build(model.names)


def test_leaves_nothing_behind_when_memory_runs_out() -> None:
    model = Model()
    placements = placed(model, "three ways")
    needed = resident_bytes(placements) + working_memory(placements, CHUNK).device_bytes + SLOTS * SLOT_BYTES
    make_runner(model, placements, SimulatedDevice(needed)).close()
    for short in (1, SLOTS * SLOT_BYTES + 1, needed):
        device = SimulatedDevice(needed - short)
        with pytest.raises(OutOfDeviceMemoryError):
            make_runner(model, placements, device)
        assert device.memory().free_bytes == needed - short


def test_timeline_shows_host_and_device(device: Any, tmp_path: Path) -> None:
    model = Model()
    timeline = Timeline()
    runner = make_runner(model, placed(model, "three ways"), device, timeline=timeline)
    timeline.start(device)
    model.run(runner, 0, tokens=1)
    timeline.write(tmp_path / "trace.json")
    assert {span.name for span in timeline.spans()} >= {"queue level 0", "wait for the device"}
    tracks = {span.track.removeprefix("modelled ") for span in timeline.spans(device.name)}
    assert tracks == {"compute", "weight copies"}
    runner.close()
