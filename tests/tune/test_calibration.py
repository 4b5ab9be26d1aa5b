"""`hybrid tune --calibrate` from end to end, as little of it as there can be: what is measured, never how much."""

import json
from pathlib import Path

import pytest

from hybrid.cli import main as cli
from hybrid.doctor.machine import examine_calibration
from hybrid.loading.planning import make_plan
from hybrid.loading.settings import RunSettings
from hybrid.machine.cpu_load import OthersLoad
from hybrid.machine.profiles import calibration_file, machine_name, save_profile
from hybrid.machine.threads import default_threads
from hybrid.tune import calibration
from hybrid.tune.calibration import TuneEffort, choose_effort, measure_machine
from hybrid.tune.step_costs import StepEffort
from hybrid.tune.zero_model import ZeroShape
from offload.calibrate.host import ROWS
from offload.calibrate.machine import Effort
from offload.machine.profile import load_profile
from offload.spec.linear import WeightFormat
from offload.spec.units import GIB, MIB

QUICK = TuneEffort(
    Effort(weight_bytes=MIB, rounds=1, disk_s=0.01),
    StepEffort(ZeroShape(layers=1, hidden=256, intermediate=256, heads=4, positions=64), steps=1, rounds=1),
    disk_bytes=MIB,
)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "choose_effort", lambda available_bytes: QUICK)
    monkeypatch.setattr(calibration, "look_at_others", lambda: OthersLoad(0.0, 2))


def tune(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, list[str]]:
    code = cli.main(["tune", *arguments])
    out, err = capsys.readouterr()
    return code, out, err.splitlines()


def test_every_rate_is_measured_and_the_profile_survives_its_file(tmp_path: Path) -> None:
    stages: list[tuple[str, float]] = []
    made = measure_machine("cpu", 1, tmp_path, lambda what, share: stages.append((what, share)), QUICK, force=True)
    profile = made.profile
    assert list(tmp_path.iterdir()) == []  # temporary files are gone
    assert (profile.name, profile.estimated, profile.gpu) == (machine_name(), False, None)
    assert profile.cpu.threads == 1
    assert profile.cpu.ram_bytes_per_s == profile.cpu.ram_bytes_per_s_beside_bus
    assert any("beside" in note for note in made.notes)
    rates = profile.cpu.multiply_bytes_per_s
    assert {name: tuple(points) for name, points in rates.items()} == {str(name): ROWS for name in WeightFormat}
    assert made.estimate.name == "generic-cpu"
    shares = [share for _, share in stages]
    assert shares == sorted(shares)
    assert shares[0] == 0 < shares[-1] < 1
    save_profile(profile, tmp_path / "machine.json")
    assert load_profile(tmp_path / "machine.json") == profile


def test_a_calibration_is_saved_and_plans_use_it(quick: None, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = tune(capsys, "--calibrate", "--device", "cpu")
    assert code == 0
    path = calibration_file(machine_name())
    assert err[-1] == f"saved as {path}"
    profile = load_profile(path)
    for word in ("CPU, int4 weights, 128 rows", "GB/s", "µs", "estimate (generic-cpu)", "measured"):
        assert word in out
    plan = make_plan(RunSettings(cuda="0"))
    assert plan.machine == profile.to_json()
    assert not any("estimates" in note for note in plan.notes)


def test_a_simulated_device_stays_an_estimate_and_is_never_used_unasked(
    quick: None, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = tune(capsys, "--calibrate", "--device", "simulated", "--json")
    assert code == 0
    path = calibration_file(f"{machine_name()}-simulated")
    assert json.loads(out) == json.loads(path.read_text())
    assert json.loads(out)["estimated"] is True
    assert any("its rates are modelled" in line for line in err)
    assert "simulated" in json.loads(out)["gpu"]["name"]
    plan = make_plan(RunSettings(cuda="0"))
    assert plan.machine["name"] == "generic-cpu"


def test_a_busy_machine_is_measured_only_by_force_and_that_is_told_until_it_is_measured_again(
    quick: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def told() -> list[bool]:
        plan, found = make_plan(RunSettings(cuda="0")), examine_calibration(default_threads())
        return [any("1.5 CPUs busy" in text for text in texts) for texts in (plan.warnings, (found.text,))]

    monkeypatch.setattr(calibration, "look_at_others", lambda: OthersLoad(1.5, 2, ("stress 12",)))
    code, out, (line,) = tune(capsys, "--calibrate", "--device", "cpu")
    assert (code, out) == (2, "")
    assert all(part in line for part in ("1.5 of these 2 CPUs busy (stress 12)", "--force"))
    assert not calibration_file(machine_name()).exists()
    code, _, err = tune(capsys, "--calibrate", "--device", "cpu", "--force")
    assert code == 0
    assert any("1.5 CPUs busy" in line for line in err)
    assert load_profile(calibration_file(machine_name())).busy_cpus == 1.5
    assert told() == [True, True]
    monkeypatch.setattr(calibration, "look_at_others", lambda: OthersLoad(0.1, 2))
    assert tune(capsys, "--calibrate", "--device", "cpu")[0] == 0
    assert told() == [False, False]


def test_threads_that_wait_for_a_core_are_told_of(
    quick: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for launch_s, told in ((8e-3, True), (2e-6, False)):
        monkeypatch.setattr("offload.calibrate.machine.launch_time", lambda backend, launch_s=launch_s: launch_s)
        code, _, err = tune(capsys, "--calibrate", "--device", "cpu")
        assert code == 0
        assert any("threads took 8.0 ms" in line for line in err) == told


def test_out_and_threads(quick: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "mine.json"
    assert tune(capsys, "--calibrate", "--device", "cpu", "--threads", "1", "--out", str(path))[0] == 0
    assert load_profile(path).cpu.threads == 1
    assert list(tmp_path.iterdir()) == [path]
    assert not calibration_file(machine_name()).exists()
    assert make_plan(RunSettings(cuda="0", machine=str(path))).machine["name"] == machine_name()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "hybrid tune --calibrate measures this machine"),
        (["--calibrate", "--device", "gpu"], "--device gpu: must be auto, cpu, cuda, cuda:N or simulated"),
        (["--calibrate", "--device", "cuda:"], "--device cuda:: must be auto"),
        (["--calibrate", "--threads", "0"], "--threads"),
        (["--calibrate", "--out", "mine.txt"], "--out mine.txt: must end in .json"),
        (["--calibrate", "--out", "/proc/mine.json"], "--out /proc/mine.json cannot be written"),
    ],
)
def test_what_cannot_be_is_said_in_a_line(
    arguments: list[str], words: str, quick: None, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = tune(capsys, *arguments)
    assert (code, out, len(err)) == (2, "", 1)
    assert words in err[0]
    assert not calibration_file(machine_name()).exists()


def test_measuring_takes_no_more_than_a_quarter_of_the_memory_and_no_more_than_a_gibibyte() -> None:
    for available_bytes in (64 * GIB, 4 * GIB, 2 * GIB, GIB, 300 * MIB):
        effort = choose_effort(available_bytes)
        limit = min(GIB, available_bytes // 4)
        assert 2 * effort.offload.weight_bytes <= limit
        assert 5 * effort.step.shape.layer_bytes <= limit
    with pytest.raises(calibration.UsageError, match="are available, and measuring takes at least 256 MiB"):
        choose_effort(100 * MIB)
