"""What onnxruntime's own profiler saw inside islands, as spans of a timeline."""

import json
import shutil
import time
import weakref
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from offload.devices.base import Span


class IslandProfiler:
    """Collects what the sessions that it is told of write down. Costs a few microseconds an operator.

    Times are in whole microseconds, as onnxruntime gives them.
    """

    def __init__(self) -> None:
        self._folder = Path(mkdtemp(prefix="hybrid-profile-"))
        self._remove_folder = weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        self._sessions: list[Any] = []
        self._files: list[tuple[Path, float]] = []  # and when each began, on time.perf_counter

    @property
    def file_prefix(self) -> str:
        """Where the next session is to write: a file of its own."""
        return str(self._folder / str(len(self._sessions)))

    def add(self, session: Any) -> None:
        """Take note of an onnxruntime session that profiles itself into `file_prefix`."""
        self._sessions.append(session)

    def end(self) -> None:
        """Let the sessions profile no more."""
        # onnxruntime counts from a time of the wall clock.
        wall_ns = time.time_ns() - time.perf_counter_ns()
        for session in self._sessions:
            began_s = (session.get_profiling_start_time_ns() - wall_ns) * 1e-9
            self._files.append((Path(session.end_profiling()), began_s))
        self._sessions.clear()

    def read(self) -> list[Span]:
        """A span for every operator that ran until the end, in seconds of `time.perf_counter`. To be called once."""
        spans = []
        for file, began_s in self._files:
            for event in json.loads(file.read_text()):
                if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
                    op_type = event["args"]["op_name"]
                    start_s = began_s + event["ts"] * 1e-6
                    spans.append(Span("operators", op_type, start_s, event["dur"] * 1e-6, op_type))
        self._remove_folder()
        return sorted(spans, key=lambda span: span.start_s)
