"""The timeline: what the host and the device did when, as a Chrome/Perfetto trace."""

import json
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from time import perf_counter
from typing import Any

from offload.devices.base import Device, Span

_OFF = nullcontext()


def span(timeline: "Timeline | None", track: str, name: str) -> AbstractContextManager[None]:
    """A context that puts its body on `timeline`, or does nothing where there is none."""
    return _OFF if timeline is None else timeline.span(track, name)


class Timeline:
    """Collects spans until it is stopped; hand it to what should be seen, and write it at the end."""

    def __init__(self) -> None:
        self._recording = True
        self._began_s = perf_counter()
        self._spans: dict[str, list[Span]] = {"host": []}  # by process
        self._devices: list[tuple[Device, float]] = []  # and when their trace began

    @contextmanager
    def span(self, track: str, name: str) -> Iterator[None]:
        """Put the body of a `with` on a track of the host."""
        if not self._recording:
            yield
            return
        start_s = perf_counter()
        try:
            yield
        finally:
            duration_s = perf_counter() - start_s
            self._spans["host"].append(Span(track, name, start_s - self._began_s, duration_s))

    def pause(self) -> None:
        """Leave out what the host does until `resume`."""
        self._recording = False

    def resume(self) -> None:
        """Go on recording what the host does."""
        self._recording = True

    def start(self, device: Device) -> None:
        """Trace everything queued on `device` from here on."""
        device.start_trace()
        self._devices.append((device, perf_counter() - self._began_s))

    def stop(self) -> None:
        """Record no more: wait for the traced devices and take over their spans."""
        self._recording = False
        for device, start_s in self._devices:
            spans = [
                Span(done.track, done.name, start_s + done.start_s, done.duration_s) for done in device.take_trace()
            ]
            self._spans.setdefault(device.name, []).extend(spans)
        self._devices.clear()

    def spans(self, process: str = "host") -> tuple[Span, ...]:
        """The spans so far of "host", or of a device by its name; seconds since the timeline was made."""
        return tuple(self._spans.get(process, ()))

    def write(self, path: Path) -> None:
        """Write the trace for chrome://tracing or ui.perfetto.dev; `path` is replaced when all is written."""
        self.stop()
        events: list[dict[str, Any]] = []
        for pid, (process, spans) in enumerate(self._spans.items(), start=1):
            events.append(_name_event("process_name", process, pid, 0))
            tracks = {track: tid for tid, track in enumerate(dict.fromkeys(s.track for s in spans), start=1)}
            events.extend(_name_event("thread_name", track, pid, tid) for track, tid in tracks.items())
            events.extend(
                {
                    "ph": "X",
                    "name": done.name,
                    "pid": pid,
                    "tid": tracks[done.track],
                    "ts": done.start_s * 1e6,  # microseconds, as the format has it
                    "dur": done.duration_s * 1e6,
                }
                for done in spans
            )
        unfinished = path.with_name(path.name + ".part")
        unfinished.write_text(json.dumps({"traceEvents": events, "displayTimeUnit": "ms"}))
        os.replace(unfinished, path)


def _name_event(kind: str, name: str, pid: int, tid: int) -> dict[str, Any]:
    return {"ph": "M", "name": kind, "pid": pid, "tid": tid, "args": {"name": name}}
