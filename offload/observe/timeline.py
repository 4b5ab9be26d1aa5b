"""The timeline: what the host and the device did when, as a Chrome/Perfetto trace."""

import json
import os
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from time import perf_counter
from typing import Any, Protocol

from offload.devices.base import Device, Span

HOST = "host"
INSIDE = "inside islands"  # what another profiler saw within spans of the host
DECODE = "decode"  # what the steps are called that run one more token of a text
MODELLED = "modelled "  # what the track names of a simulated device begin with
_STEPS_LOOKED_INTO = 8
_OFF = nullcontext()


class Operator(StrEnum):
    """The kinds of work that spans do."""

    ISLAND = "island"
    ATTENTION = "attention"
    HOST_COLUMNS = "host columns"
    QUEUE = "queue"
    WAIT = "wait"
    COLLECT = "collect"
    GEMM = "gemm"
    COPY_IN = "copy-in"
    COPY_OUT = "copy-out"


@dataclass(frozen=True)
class Step:
    """One step and what ran in it, by process; all in seconds since the timeline was made.

    A span belongs to the step in which it begins, so work of a device may end after the step.
    """

    name: str
    start_s: float
    duration_s: float
    host: tuple[Span, ...] = ()
    devices: tuple[Span, ...] = ()
    inside: tuple[Span, ...] = ()

    @property
    def stop_s(self) -> float:
        """Give the time when it was done."""
        return self.start_s + self.duration_s


_HostSpan = tuple[str, str, float, float, str, str]  # track, name, start and stop on perf_counter, operator, what


@dataclass
class _TracedDevice:
    """A device, when its trace began, and the moments at which its clock and the host's were read together."""

    device: Device
    began_s: float
    moments: list[tuple[float, float]] = field(default_factory=list)

    def taken_over(self, done: Span) -> Span:
        """A span of the device on the host's clock, its operator and what that works on read off its name."""
        before = max(bisect_right(self.moments, done.start_s, key=lambda moment: moment[0]) - 1, 0)
        device_s, host_s = self.moments[before] if self.moments else (0.0, self.began_s)
        operator, _, size = done.name.partition(" ")
        what = size if operator == Operator.GEMM else f"{done.track.removeprefix(MODELLED)} stream"
        return replace(done, start_s=host_s + done.start_s - device_s, operator=operator, what=what)


def span(
    timeline: "Timeline | None", track: str, name: str, operator: str = "", what: str = ""
) -> AbstractContextManager[None]:
    """A context that puts its body on `timeline`, or does nothing where there is none."""
    return _OFF if timeline is None else timeline.span(track, name, operator, what)


def step(timeline: "Timeline | None", name: str) -> AbstractContextManager[None]:
    """A context that makes its body a step of `timeline`, or does nothing where there is none."""
    return _OFF if timeline is None else timeline.step(name)


class _OpenSpan:
    """A context that adds its body to `spans` when it is over. There are hundreds in a step, so it does little."""

    __slots__ = ("_name", "_operator", "_spans", "_start_s", "_track", "_what")

    def __init__(self, spans: list[_HostSpan], track: str, name: str, operator: str, what: str) -> None:
        self._spans = spans
        self._track = track
        self._name = name
        self._operator = operator
        self._what = what

    def __enter__(self) -> None:
        self._start_s = perf_counter()

    def __exit__(self, *_: object) -> None:
        stop_s = perf_counter()
        self._spans.append((self._track, self._name, self._start_s, stop_s, self._operator, self._what))


class InsideProfiler(Protocol):
    """Another profiler, which sees what goes on within spans of the host."""

    def begin_step(self) -> None:
        """A step begins that is to be looked into."""

    def end(self) -> None:
        """Look no more; calls after the first do nothing."""

    def read(self) -> list[Span]:
        """Give what was seen, on the clock of `time.perf_counter`. To be called once, after `end`."""


class Timeline:
    """Collects spans until it is stopped; hand it to what should be seen, and write it at the end.

    It stops by itself after so many decode steps, if `most_decode_steps` is given. `looks_inside` asks for what goes
    on within islands too; that slows them down, so only the first few steps are looked into.
    """

    def __init__(self, most_decode_steps: int | None = None, looks_inside: bool = False) -> None:
        self.looks_inside = looks_inside
        self._inside: InsideProfiler | None = None
        self._most_decode_steps = most_decode_steps
        self._decode_steps = 0
        self._recording = True
        self._began_s = perf_counter()
        self._host: list[_HostSpan] = []
        self._others: dict[str, list[Span]] = {}  # by process
        self._steps: list[Step] = []
        self._devices: list[_TracedDevice] = []
        self._modelled: set[str] = set()

    def span(self, track: str, name: str, operator: str = "", what: str = "") -> AbstractContextManager[None]:
        """Put the body of a `with` on a track of the host; see `Span` for `operator` and `what`."""
        return _OpenSpan(self._host, track, name, operator, what) if self._recording else _OFF

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Make the body of a `with` a step. One that fails, or that the recording does not see whole, is none."""
        recording = self._recording
        if self._inside is not None and self._decode_steps < _STEPS_LOOKED_INTO:
            self._inside.begin_step()
        start_s = self._now_s()
        yield
        if recording and self._recording:
            self._steps.append(Step(name, start_s, self._now_s() - start_s))
            self._decode_steps += name == DECODE
            if self._inside is not None and self._decode_steps == _STEPS_LOOKED_INTO:
                self._inside.end()
            if self._decode_steps == self._most_decode_steps:
                self._end()

    def pause(self) -> None:
        """Leave out what the host does until `resume`."""
        self._recording = False

    def resume(self) -> None:
        """Go on recording what the host does."""
        self._recording = True

    def start(self, device: Device) -> None:
        """Trace everything queued on `device` from here on."""
        device.start_trace()
        self._devices.append(_TracedDevice(device, self._now_s()))

    def look_inside(self, profiler: InsideProfiler) -> None:
        """Let `profiler` see the first few steps."""
        self._inside = profiler

    def align(self) -> None:
        """Note that what is queued from here on begins now.

        The clock of a simulated device stands still while the host works; without this its work would be shown long
        before the host asked for it.
        """
        for traced in self._devices:
            device_s = traced.device.trace_clock_s()
            if not traced.moments or device_s > traced.moments[-1][0]:
                traced.moments.append((device_s, self._now_s()))

    def stop(self) -> None:
        """Record no more: wait for the traced devices and take over their spans."""
        self._end()
        if self._inside is not None:
            spans = self._inside.read()
            self._inside = None
            self._others[INSIDE] = [replace(done, start_s=done.start_s - self._began_s) for done in spans]

    def _end(self) -> None:
        """The part of `stop` that does not take long."""
        self._recording = False
        if self._inside is not None:
            self._inside.end()
        for traced in self._devices:
            device = traced.device
            if device.simulated:
                self._modelled.add(device.name)
            self._others.setdefault(device.name, []).extend(map(traced.taken_over, device.take_trace()))
        self._devices.clear()

    @property
    def modelled(self) -> bool:
        """True when the times of a device are a simulated one's."""
        return bool(self._modelled)

    def spans(self, process: str = HOST) -> tuple[Span, ...]:
        """The spans so far of "host", or of a device by its name; seconds since the timeline was made."""
        if process != HOST:
            return tuple(self._others.get(process, ()))
        return tuple(
            Span(track, name, start_s - self._began_s, stop_s - start_s, operator, what)
            for track, name, start_s, stop_s, operator, what in self._host
        )

    def steps(self) -> tuple[Step, ...]:
        """The whole steps so far, with their spans. Those of devices are there once the timeline has stopped."""
        starts = [done.start_s for done in self._steps]
        host: list[list[Span]] = [[] for _ in starts]
        inside: list[list[Span]] = [[] for _ in starts]
        devices: list[list[Span]] = [[] for _ in starts]
        for process in (HOST, *self._others):
            by_step = {HOST: host, INSIDE: inside}.get(process, devices)
            for done in self.spans(process):
                number = bisect_right(starts, done.start_s) - 1
                if number >= 0 and done.start_s < self._steps[number].stop_s:
                    by_step[number].append(done)
        return tuple(
            replace(done, host=tuple(host[number]), devices=tuple(devices[number]), inside=tuple(inside[number]))
            for number, done in enumerate(self._steps)
        )

    def write(self, path: Path) -> None:
        """Write the trace for chrome://tracing or ui.perfetto.dev; `path` is replaced when all is written."""
        self.stop()
        events: list[dict[str, Any]] = []
        steps = [Span("steps", done.name, done.start_s, done.duration_s, "step") for done in self._steps]
        for pid, process in enumerate((HOST, *self._others), start=1):
            spans = [*(steps if process == HOST else ()), *self.spans(process)]
            events.append(_name_event("process_name", process, pid, 0))
            tracks = {track: tid for tid, track in enumerate(dict.fromkeys(s.track for s in spans), start=1)}
            events.extend(_name_event("thread_name", track, pid, tid) for track, tid in tracks.items())
            events.extend(
                {
                    "ph": "X",
                    "name": done.name,
                    "cat": done.operator,
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

    def _now_s(self) -> float:
        return perf_counter() - self._began_s


def _name_event(kind: str, name: str, pid: int, tid: int) -> dict[str, Any]:
    return {"ph": "M", "name": kind, "pid": pid, "tid": tid, "args": {"name": name}}
