"""Parts of the GPU kit that fail, hang or find half of it, and what is written of them."""

import sys
import time
from pathlib import Path
from typing import Any

import pytest

from bench.gpu import part, rates, run
from bench.gpu import tests as gpu_tests
from bench.gpu.job import Job
from bench.gpu.report import report
from tests.gpu_kit.jobs import a_job


def test_a_part_that_fails_is_recorded_and_the_next_one_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    parts = (run.Part("cap", "Cap", 5), run.Part("no_such_part", "None", 5), run.Part("environment", "Machine", 5))
    monkeypatch.setattr(run, "PARTS", parts)
    monkeypatch.setattr(run, "_draw", lambda results, out: None)
    results = run.run_parts("simulated", "rehearsal", tmp_path, tmp_path, 60, "command", "commit")
    cap, none, machine = results["parts"].values()
    assert cap["status"] == "failed: RuntimeError: no run with a budget was measured"
    assert none["status"].startswith("failed: ModuleNotFoundError")
    assert (machine["status"], machine["found"]["commit"]) == ("done", "commit")
    text = (tmp_path / "gpu.md").read_text()
    assert "**failed: RuntimeError: no run with a budget was measured**" in text
    assert "- GPU: simulated device" in text


def test_a_part_that_fails_keeps_what_it_had_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    job = a_job(tmp_path, "simulated")

    def measure(job: Job, save: Any) -> Any:
        save({"first": 1})
        raise ValueError("the second\nis none")

    monkeypatch.setattr(rates, "run", measure)
    monkeypatch.setattr(sys, "argv", ["part", "rates", part.to_argument(job)])
    assert part.main() == 1
    assert job.found("rates") == {"first": 1, "error": "ValueError: the second is none"}


def test_a_part_that_hangs_is_ended_with_all_that_it_started(tmp_path: Path) -> None:
    """Its own child writes its number, and waits."""
    file = tmp_path / "pid"
    grandchild = f"import os, time; open({str(file)!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    child = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {grandchild!r}])"
    limit_s = 0.5
    while not file.exists() or not file.read_text():
        assert limit_s < 60
        assert run._run_within(limit_s, [sys.executable, "-c", child]) is None
        limit_s *= 2
    stat = Path("/proc", file.read_text(), "stat")
    ends_s = time.monotonic() + 10
    while stat.exists() and stat.read_text().rpartition(") ")[2][0] not in "ZX":
        assert time.monotonic() < ends_s


def test_half_a_result_has_half_a_report() -> None:
    found = {"roof_bytes_per_s": 1e9, "roof": "copy"}
    part = {"title": "Rates", "status": "failed: not done after 5 s, and ended", "found": found}
    text = report({"modelled": False, "date": "today", "command": "kit", "parts": {"rates": part}})
    assert "**failed: not done after 5 s, and ended**" in text
    assert "no table: 'pageable_back_bytes_per_s' was not reached" in text
    assert "modelled" not in text


def test_the_tests_of_a_report_are_counted(tmp_path: Path) -> None:
    report = tmp_path / "report.xml"
    report.write_text(
        '<testsuites><testsuite><testcase classname="t" name="a"/>'
        '<testcase classname="t" name="b"><failure message="assert 1 == 2&#10;more">long</failure></testcase>'
        '<testcase classname="t" name="c"><skipped message="no GPU"/></testcase></testsuite></testsuites>'
    )
    found = gpu_tests.counts(report)
    assert (found["passed"], found["failed"], found["skipped"]) == (1, 1, 1)
    assert (found["failures"], found["why_skipped"]) == (["t.b: assert 1 == 2"], ["no GPU"])


def test_tests_that_hang_are_named() -> None:
    output = "collected 3\n\ntests/a.py::one PASSED   [ 33%]\ntests/a.py::two FAILED   [ 66%]\ntests/a.py::stuck "
    assert gpu_tests.so_far(output) == "1 passed, 1 failed, at last tests/a.py::stuck"
    assert gpu_tests.so_far("") == "0 passed, 0 failed, at last nothing"
