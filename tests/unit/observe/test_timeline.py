"""The timeline and the file it writes."""

import json
from pathlib import Path
from time import perf_counter

import pytest

from offload.devices.base import DeviceArray, Span
from offload.devices.simulated.device import SimulatedDevice
from offload.observe.timeline import DECODE, Operator, Timeline, span, step
from offload.spec.linear import WeightFormat


def test_spans_are_recorded_in_seconds() -> None:
    timeline = Timeline()
    with span(timeline, "host work", "outer"), span(timeline, "host work", "inner"):
        pass
    inner, outer = timeline.spans()
    assert (inner.name, outer.name) == ("inner", "outer")
    assert outer.start_s <= inner.start_s
    assert 0 <= inner.duration_s <= outer.duration_s < 1


def test_without_a_timeline_nothing_is_made() -> None:
    assert span(None, "track", "a") is span(None, "track", "b")


def test_a_failed_body_is_recorded_too() -> None:
    timeline = Timeline()
    with pytest.raises(KeyError), timeline.span("track", "fails"):
        raise KeyError
    assert [done.name for done in timeline.spans()] == ["fails"]


def test_a_span_belongs_to_the_step_it_begins_in() -> None:
    timeline = Timeline()
    with timeline.span("track", "before"):
        pass
    with step(timeline, "prefill"), timeline.span("track", "a"):
        pass
    with step(timeline, "decode"):
        with timeline.span("track", "b", Operator.ISLAND, "Add"):
            pass
        with timeline.span("track", "c"):
            pass
    prefill, decode = timeline.steps()
    assert [prefill.name, *(done.name for done in prefill.host)] == ["prefill", "a"]
    assert [decode.name, *(done.name for done in decode.host)] == ["decode", "b", "c"]
    assert (decode.host[0].operator, decode.host[0].what) == ("island", "Add")
    assert prefill.stop_s <= decode.start_s <= decode.host[0].start_s


def test_a_step_that_fails_or_is_not_seen_whole_is_none() -> None:
    timeline = Timeline()
    with pytest.raises(KeyError), timeline.step("fails"):
        raise KeyError
    with timeline.step("ends unseen"):
        timeline.pause()
    with timeline.step("begins unseen"):
        timeline.resume()
    assert timeline.steps() == ()


def test_it_stops_after_enough_decode_steps() -> None:
    timeline = Timeline(most_decode_steps=2)
    device = SimulatedDevice(4096)
    timeline.start(device)
    for name in ("prefill", "prefill", "prefill", DECODE, DECODE, DECODE):
        with timeline.step(name), timeline.span("track", "a"):
            pass
    assert [done.name for done in timeline.steps()] == ["prefill"] * 3 + [DECODE] * 2
    assert len(timeline.spans()) == 5
    assert timeline.modelled  # the device's part is there


class OneOperatorAStep:
    """Sees one operator in every step."""

    def __init__(self) -> None:
        self.seen: list[Span] = []
        self.looking = True

    def begin_step(self) -> None:
        self.looking = True

    def end(self) -> None:
        self.looking = False

    def read(self) -> list[Span]:
        return self.seen


def test_only_the_first_decode_steps_are_looked_into() -> None:
    timeline = Timeline(looks_inside=True)
    profiler = OneOperatorAStep()
    timeline.look_inside(profiler)
    for name in ("prefill", *[DECODE] * 10):
        with timeline.step(name):
            if profiler.looking:
                profiler.seen.append(Span("operators", "Add", perf_counter(), 0.0, "Add"))
    timeline.stop()
    timeline.stop()  # again changes nothing
    assert [len(done.inside) for done in timeline.steps()] == [1] * 9 + [0, 0]


def test_what_a_simulated_device_does_is_beside_what_asked_for_it() -> None:
    """Its clock stands still while the host works, so its own times would all lie in the first step."""
    timeline = Timeline()
    device = SimulatedDevice(4096)
    array = DeviceArray(device.allocate(1024), 0, (1, 256), WeightFormat.FP32)
    pinned, stream = device.allocate_pinned(1024), device.stream("weight copies")
    timeline.start(device)
    for _ in range(3):
        with timeline.step("decode"):
            timeline.align()
            with timeline.span("linears", "queue", Operator.QUEUE):
                stream.copy_to_device(array, pinned)
            stream.synchronize()
    timeline.stop()
    assert timeline.modelled
    for done in timeline.steps():
        (copy,) = done.devices
        assert (copy.operator, copy.what) == ("copy-in", "weight copies stream")
        assert done.start_s <= copy.start_s <= done.host[0].start_s


def test_the_file_names_processes_and_threads(tmp_path: Path) -> None:
    timeline = Timeline()
    with timeline.span("islands", "norm"):
        pass
    device = SimulatedDevice(4096)
    timeline.start(device)
    array = DeviceArray(device.allocate(1024), 0, (1, 256), WeightFormat.FP32)
    device.stream("weight copies").copy_to_device(array, device.allocate_pinned(1024))
    path = tmp_path / "trace.json"
    path.write_text("old")
    timeline.write(path)

    events = json.loads(path.read_text())["traceEvents"]
    names = {(event["name"], event["args"]["name"]) for event in events if event["ph"] == "M"}
    assert names == {
        ("process_name", "host"),
        ("thread_name", "islands"),
        ("process_name", "simulated device (modelled times)"),
        ("thread_name", "modelled weight copies"),
    }
    norm, copy = (event for event in events if event["ph"] == "X")
    assert (norm["name"], copy["name"]) == ("norm", "copy-in 1024 B")
    assert norm["pid"] != copy["pid"]
    assert copy["dur"] == pytest.approx(10 + 1024 / 12e9 * 1e6)  # microseconds
    (recorded,) = timeline.spans("host")
    assert (norm["ts"], norm["dur"]) == pytest.approx((recorded.start_s * 1e6, recorded.duration_s * 1e6))
    assert [file.name for file in tmp_path.iterdir()] == ["trace.json"]
