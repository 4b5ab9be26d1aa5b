"""Operators inside islands stay in their step, whatever happens to the wall clock that onnxruntime writes."""

import json
import time
from pathlib import Path

import pytest

from hybrid.engine.island_profiler import IslandProfiler

SECOND_NS = 10**9


class WrittenSession:
    """An onnxruntime session whose profile is written already."""

    def __init__(self, file: Path, began_ns: int, moments_us: list[int]) -> None:
        self.file = file
        self.began_ns = began_ns
        args = {"op_name": "Add"}
        events = [{"cat": "Node", "name": "Add_kernel_time", "ts": ts, "dur": 7, "args": args} for ts in moments_us]
        file.write_text(json.dumps([{"cat": "Session", "name": "model_run", "ts": 0, "dur": 9}, *events]))

    def get_profiling_start_time_ns(self) -> int:
        return self.began_ns

    def end_profiling(self) -> str:
        return str(self.file)


@pytest.mark.parametrize("set_forward_ns", [0, SECOND_NS])
def test_a_wall_clock_set_between_steps_moves_no_operator(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, set_forward_ns: int
) -> None:
    profiler = IslandProfiler()
    now_ns, ahead_ns = 5 * SECOND_NS, 1000 * SECOND_NS
    monkeypatch.setattr(time, "perf_counter_ns", lambda: now_ns)
    monkeypatch.setattr(time, "time_ns", lambda: now_ns + ahead_ns)
    began_ns = now_ns + ahead_ns
    profiler.begin_step()
    now_ns += SECOND_NS
    ahead_ns += set_forward_ns
    profiler.begin_step()
    second_step_us = (SECOND_NS + set_forward_ns) // 1000 + 20
    profiler.add(WrittenSession(tmp_path / "profile.json", began_ns, [10, second_step_us]))
    profiler.end()
    spans = profiler.read()
    assert [span.start_s for span in spans] == pytest.approx([5.00001, 6.00002], abs=1e-9)
    assert [(span.operator, span.duration_s) for span in spans] == [("Add", 7e-6)] * 2
