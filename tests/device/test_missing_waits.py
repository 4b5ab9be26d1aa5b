"""Every wait of the ring and the runner, left out on purpose: the simulated device must find out.

Each is tried with rates that let the mistake show and with rates that hide it, where timing alone would give
the right numbers. A control run without the happens-before check proves that the hiding rates do hide it.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from offload.devices.base import DeviceArray
from offload.devices.simulated.device import SimulatedDevice
from offload.devices.simulated.happens_before import AccessHistory, StreamOrderError
from offload.devices.simulated.rates import SimulatedRates
from offload.run.runner import LinearRunner
from offload.spec.linear import WeightFormat
from tests.device.support import NumpyHost, as_stored, in_one_block, linear, make_plan, place
from tests.device.test_ring import COLUMNS, Stage

FAST_COPIES = SimulatedRates(1e15, 1e15, copy_latency_s=1e-12, launch_s=1e-3)
SLOW_COPIES = SimulatedRates(1e6, 1e6, copy_latency_s=1e-3, launch_s=1e-12)


def ignore(*_: object) -> None:
    """In the place of a wait."""


def stream_pieces(rates: SimulatedRates, break_it: Callable[[Stage], None]) -> None:
    """Two steps over five pieces through two slots, with the results checked."""
    stage = Stage(SimulatedDevice(1 << 20, rates=rates), pieces=5, uses=10, slots=2)
    break_it(stage)
    for use in range(10):
        stage.use(use % 5)
    stage.check()


def no_ready_wait(stage: Stage) -> None:
    stage.compute.wait = ignore


def no_free_wait(stage: Stage) -> None:
    stage.ring._copies.wait = ignore  # type: ignore[method-assign]


def wait_before_record(stage: Stage) -> None:
    """The copy waits for what the slot's previous user recorded."""
    copies, compute = stage.ring._copies, stage.compute
    wait, record = copies.wait, compute.record

    def wait_then_record(event: Any) -> None:
        wait(event)
        record(event)

    compute.record = ignore
    copies.wait = wait_then_record  # type: ignore[method-assign]


@pytest.mark.parametrize("rates", [FAST_COPIES, SLOW_COPIES, SimulatedRates()])
def test_streaming_is_ordered(rates: SimulatedRates) -> None:
    stream_pieces(rates, ignore)


@pytest.mark.parametrize(
    ("break_it", "hiding", "showing"),
    [
        (no_ready_wait, FAST_COPIES, SLOW_COPIES),
        (no_free_wait, SLOW_COPIES, FAST_COPIES),
        (wait_before_record, SLOW_COPIES, FAST_COPIES),
    ],
)
def test_a_missing_wait_of_the_ring_is_found(
    break_it: Callable[[Stage], None],
    hiding: SimulatedRates,
    showing: SimulatedRates,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for rates in (hiding, showing):
        with pytest.raises(StreamOrderError, match="without waiting for"):
            stream_pieces(rates, break_it)
    monkeypatch.setattr(AccessHistory, "add", ignore)
    stream_pieces(hiding, break_it)  # right numbers, by luck
    with pytest.raises(AssertionError):
        stream_pieces(showing, break_it)


def make_runner(device: Any) -> LinearRunner:
    spec = linear("q", "q", 32, 64)
    weights = {"q": as_stored(spec, np.ones((64, 32), np.float16))}
    plan = make_plan([place(spec, 0.5, 0.25)], chunk_tokens=2, slots=1, slot_bytes=512)
    return LinearRunner([["q"]], plan, weights, device, NumpyHost())


@pytest.mark.parametrize("rates", [FAST_COPIES, SLOW_COPIES])
def test_outputs_read_too_early_are_nan(rates: SimulatedRates) -> None:
    device = SimulatedDevice(1 << 20, rates=rates)
    runner = make_runner(device)
    assert runner._work is not None
    x, y = np.ones((1, 32), np.float32), np.zeros((1, 64), np.float32)
    runner.run(0, {"q": x}, {"q": y})
    assert np.all(y == 32)
    # Let all the time in the world pass, but without learning that the compute stream is done.
    runner._work.compute.synchronize = device._clock.finish  # type: ignore[method-assign]
    runner.run(0, {"q": x}, {"q": y})
    assert np.all(np.isnan(y[:, :48]))
    assert np.all(y[:, 48:] == 32)


@pytest.mark.parametrize("rates", [FAST_COPIES, SLOW_COPIES])
def test_inputs_rewritten_too_early_are_found(rates: SimulatedRates) -> None:
    device = SimulatedDevice(1 << 20, rates=rates)
    runner = make_runner(device)
    assert runner._work is not None
    compute = runner._work.compute
    synchronize, compute.synchronize = compute.synchronize, device._clock.finish  # type: ignore[method-assign]
    for value in (1, 2):
        x = np.full((1, 32), value, np.float32)
        runner.run(0, {"q": x}, {"q": np.zeros((1, 64), np.float32)})
    with pytest.raises(StreamOrderError, match="the host wrote to the source of the fetch"):
        synchronize()


def change_phase(rates: SimulatedRates, break_it: Callable[[Stage], None]) -> None:
    """Two pieces of one phase, a third interrupted in its use, then pieces of another phase; results checked."""
    stage = Stage(SimulatedDevice(1 << 20, rates=rates), pieces=5, uses=5, slots=2)
    stage.use(0)
    stage.use(1)
    y = DeviceArray(stage.memory, 1024 + 4 * 64, (2, COLUMNS), WeightFormat.FP32)
    stage.multiply(stage.ring.acquire(2), y)  # and never released
    break_it(stage)
    stage.ring.retarget(stage.pieces[3:])
    stage.use(3, shift=3)
    stage.use(4, shift=3)
    stage.results.append((2, y))
    stage.check()


def retarget_without_waiting_for_readers(stage: Stage) -> None:
    retarget, release_slot = stage.ring.retarget, stage.ring._release_slot

    def unguarded(pieces: Any) -> None:
        stage.ring._release_slot = ignore  # type: ignore[method-assign]
        retarget(pieces)
        stage.ring._release_slot = release_slot  # type: ignore[method-assign]

    stage.ring.retarget = unguarded  # type: ignore[method-assign]


def retarget_without_ready_records(stage: Stage) -> None:
    """The compute stream waits for the copies of the old phase."""
    retarget, record = stage.ring.retarget, stage.ring._copies.record

    def unrecorded(pieces: Any) -> None:
        stage.ring._copies.record = ignore  # type: ignore[method-assign]
        retarget(pieces)
        stage.ring._copies.record = record  # type: ignore[method-assign]

    stage.ring.retarget = unrecorded  # type: ignore[method-assign]


@pytest.mark.parametrize("rates", [FAST_COPIES, SLOW_COPIES, SimulatedRates()])
def test_a_change_of_phase_is_ordered(rates: SimulatedRates) -> None:
    change_phase(rates, ignore)


@pytest.mark.parametrize(
    ("break_it", "hiding", "showing"),
    [
        (no_ready_wait, FAST_COPIES, SLOW_COPIES),
        (retarget_without_waiting_for_readers, SLOW_COPIES, FAST_COPIES),
        (retarget_without_ready_records, FAST_COPIES, SLOW_COPIES),
    ],
)
def test_a_missing_wait_of_a_change_of_phase_is_found(
    break_it: Callable[[Stage], None],
    hiding: SimulatedRates,
    showing: SimulatedRates,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for rates in (hiding, showing):
        with pytest.raises(StreamOrderError, match="without waiting for"):
            change_phase(rates, break_it)
    monkeypatch.setattr(AccessHistory, "add", ignore)
    change_phase(hiding, break_it)  # right numbers, by luck
    with pytest.raises(AssertionError):
        change_phase(showing, break_it)


def test_unpinning_columns_in_use_is_found() -> None:
    device = SimulatedDevice(1 << 20)
    spec = linear("q", "q", 32, 64)
    weights = in_one_block({"q": as_stored(spec, np.ones((64, 32), np.float16))})
    plan = make_plan([place(spec, 0, 0, 1)], 2, slots=1, slot_bytes=512, prefill_tokens=2)
    runner = LinearRunner([["q"]], plan, weights, device, NumpyHost())
    assert runner._work is not None
    step = runner._work.bind(runner._prefill_levels[0].device, 2)
    runner._work.queue(step, {"q": np.ones((2, 32), np.float32)})
    runner._work.compute.synchronize()  # all pieces were used, and the ring has begun to copy the first ones again
    with pytest.raises(StreamOrderError, match="unpinning of"):
        device.unpin(runner._work._pieces[True][0].pinned[0].base.view(np.uint8))
    runner.close()


def test_freeing_weights_in_use_is_found() -> None:
    runner = make_runner(SimulatedDevice(1 << 20))
    assert runner._work is not None
    runner._work.queue(runner._work.bind(runner._levels[0].device, 1), {"q": np.ones((1, 32), np.float32)})
    with pytest.raises(StreamOrderError, match="free of"):
        runner._work.store.close()
    runner.close()  # waits first
