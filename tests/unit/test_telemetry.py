"""The timeline and the file it writes."""

import json
from pathlib import Path

import pytest

from offload.devices.base import DeviceArray
from offload.devices.simulated import SimulatedDevice
from offload.specs import WeightFormat
from offload.telemetry import Timeline, span


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
    assert [file.name for file in tmp_path.iterdir()] == ["trace.json"]
