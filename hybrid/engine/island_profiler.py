"""Reads onnxruntime's own profiles of islands, as spans of a timeline."""

import json
import shutil
import time
import weakref
from bisect import bisect_right
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from offload.devices.base import Span


class IslandProfiler:
    """Collects what the sessions that it is told of write down. Costs a few microseconds an operator.

    Times are in whole microseconds, as onnxruntime gives them: on the wall clock, which is set and slewed while a
    program runs. So the two clocks are compared at every step.
    """

    def __init__(self) -> None:
        self._folder = Path(mkdtemp(prefix="hybrid-profile-"))
        self._remove_folder = weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        self._sessions: list[Any] = []
        self._files: list[tuple[Path, int]] = []  # and when each began, in ns of the wall clock
        self._clocks: list[tuple[int, int]] = []  # readings of the wall clock and of time.perf_counter, in ns

    @property
    def file_prefix(self) -> str:
        """Name the file for the next session's profile: one of its own."""
        return str(self._folder / str(len(self._sessions)))

    def add(self, session: Any) -> None:
        """Take note of an onnxruntime session that profiles itself into `file_prefix`."""
        self._sessions.append(session)

    def begin_step(self) -> None:
        """Compare the wall clock with `time.perf_counter`."""
        # Of several readings the quickest: one that is interrupted halfway is off by that time.
        readings = []
        for _ in range(3):
            before_ns, wall_ns, after_ns = time.perf_counter_ns(), time.time_ns(), time.perf_counter_ns()
            readings.append((after_ns - before_ns, wall_ns, before_ns))
        _, wall_ns, counter_ns = min(readings)
        self._clocks.append((wall_ns, counter_ns))

    def end(self) -> None:
        """Let the sessions profile no more."""
        for session in self._sessions:
            began_ns = session.get_profiling_start_time_ns()
            self._files.append((Path(session.end_profiling()), began_ns))
        self._sessions.clear()

    def read(self) -> list[Span]:
        """A span for every operator of a step until the end, in seconds of `time.perf_counter`. To be called once."""
        spans = []
        for file, began_ns in self._files:
            for event in json.loads(file.read_text()):
                if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
                    op_type = event["args"]["op_name"]
                    start_s = self._counter_s(began_ns + event["ts"] * 1000)
                    spans.append(Span("operators", op_type, start_s, event["dur"] * 1e-6, op_type))
        self._remove_folder()
        return sorted(spans, key=lambda span: span.start_s)

    def _counter_s(self, wall_ns: int) -> float:
        """`time.perf_counter` at a time of the wall clock, by the last comparison before."""
        compared = max(bisect_right(self._clocks, (wall_ns, 0)) - 1, 0)
        compared_wall_ns, counter_ns = self._clocks[compared]
        return (counter_ns + wall_ns - compared_wall_ns) * 1e-9
