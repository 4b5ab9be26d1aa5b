"""The CPU load of other processes, out of files as the kernel writes them, and the note of a run."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from hybrid.machine import cpu_load
from hybrid.machine.cpu_load import CpuTimes, OthersLoad, cpu_times, look_at_others, others_load
from hybrid.show.truth import Truth, slow_because
from offload.plan.plan import Prediction

NOW = CpuTimes(100.0, 2, 50.0, 10.0)


def test_the_cpus_that_this_process_may_use_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """user, nice, system, irq, softirq and steal, which somebody else has; no guest twice, nor idle or iowait."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 2})
    monkeypatch.setattr(os, "sysconf", lambda name: 100)
    line = "100 20 30 5000 600 7 8 9 40 50"
    (tmp_path / "stat").write_text(f"cpu  1 1 1 1\ncpu0 {line}\ncpu1 {line}\ncpu2 {line}\nintr 5 6\n")
    times = cpu_times(tmp_path)
    assert times is not None
    assert (times.cpus, times.busy_s) == (2, pytest.approx(2 * 1.74))
    (tmp_path / "stat").write_text("cpu0 many\n")
    assert cpu_times(tmp_path) is None
    assert cpu_times(tmp_path / "nowhere") is None


def test_others_are_all_but_this_process() -> None:
    load = others_load(NOW, CpuTimes(102.0, 2, 54.0, 11.0))
    assert load == OthersLoad(1.5, 2)
    assert load.is_heavy
    alone = others_load(NOW, CpuTimes(102.0, 2, 54.0, 14.0))
    assert alone == OthersLoad(0.0, 2)
    assert not alone.is_heavy
    assert others_load(NOW, replace(NOW, at_s=100.1)) is None  # too short to say
    assert others_load(None, NOW) is None
    assert not OthersLoad(1.0, 16).is_heavy


def test_the_busiest_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name may hold anything; what a process may not do is write to a terminal by it."""

    def write(ticks: int) -> None:
        for number, name, took in ((11, "stress (x) \x1b[2J", ticks), (12, "sleepy", 1)):
            (tmp_path / str(number)).mkdir(exist_ok=True)
            (tmp_path / str(number) / "stat").write_text(f"{number} ({name}) R {' 0' * 10} {took} 3 0 0")

    write(5)
    monkeypatch.setattr(cpu_load, "_PROC", tmp_path)
    moments = iter([NOW, CpuTimes(100.5, 2, 51.0, 10.0)])
    monkeypatch.setattr(cpu_load, "cpu_times", lambda: next(moments))
    load = look_at_others(wait=lambda seconds: write(50))
    assert load is not None
    assert load.busy_cpus == 2.0
    (name,) = load.names
    assert name.startswith("'stress (x)")
    assert name.endswith(" 11")
    assert "\x1b" not in name


@pytest.mark.parametrize(
    ("measured_s", "busy", "said"),
    [(0.2, 1.0, "--threads 1"), (0.2, 1.9, "end them"), (0.2, 0.1, ""), (0.11, 1.9, "")],
)
def test_a_run_far_slower_than_predicted_says_why(measured_s: float, busy: float, said: str) -> None:
    truth = Truth(Prediction(0.1, 10.0, "host", 0, {"host": 0.1}), measured_s)
    line = slow_because(truth, OthersLoad(busy, 2))
    assert said in line
    assert bool(line) == bool(said)
    assert slow_because(None, OthersLoad(2, 2)) == ""
    assert slow_because(truth, None) == ""
