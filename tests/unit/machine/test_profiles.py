"""Measured profiles: used without being asked where they describe the run, and never where they do not."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from hybrid.doctor.machine import examine_calibration
from hybrid.doctor.report import Level
from hybrid.errors import UsageError
from hybrid.loading.opened_model import open_for_run
from hybrid.loading.planning import plan_request
from hybrid.loading.settings import RunSettings
from hybrid.loading.target import GpuFacts, Target, choose_target
from hybrid.machine.profiles import calibration_file, find_profile, machine_name, save_profile
from hybrid.machine.threads import default_threads
from offload.errors import DeviceUnavailableError, ProfileError
from offload.machine.profile import DeviceProfile, load_profile
from offload.plan.placing import NO_RING, place
from offload.plan.shares import Shares
from offload.spec.units import GIB


def measured(gpu_name: str | None = None, threads: int | None = None, estimated: bool = False) -> DeviceProfile:
    """A profile of this machine, saved where runs look for it."""
    base = find_profile("colab-t4")
    assert base.gpu is not None
    profile = replace(
        base,
        name=machine_name(),
        estimated=estimated,
        cpu=replace(base.cpu, threads=threads or default_threads()),
        gpu=None if gpu_name is None else replace(base.gpu, name=gpu_name, context_bytes=77),
    )
    save_profile(profile, calibration_file(machine_name()))
    return profile


def gpu(name: str, fixed_bytes: dict[str, int]) -> Callable[[int, DeviceProfile], GpuFacts]:
    return lambda ordinal, profile: GpuFacts(name, 7 * GIB, 8 * GIB, fixed_bytes)


def no_gpu(ordinal: int, profile: DeviceProfile) -> GpuFacts:
    raise DeviceUnavailableError("no NVIDIA driver")


def on_cpu(**changes: object) -> Target:
    return choose_target(replace(RunSettings(cuda="0"), **changes), no_gpu)


def test_the_doctor_says_whether_this_machine_was_measured() -> None:
    missing = examine_calibration(default_threads())
    assert (missing.level, missing.mend) == (Level.NOTE, "hybrid tune --calibrate")
    measured(threads=3)
    text = examine_calibration(5).text
    assert "3 threads" in text
    assert "5" in text
    assert examine_calibration(3).level is Level.OK


def test_what_was_measured_is_used_from_then_on() -> None:
    (note,) = on_cpu().notes
    assert "generic-cpu" in note
    assert "hybrid tune --calibrate" in note
    profile = measured()
    target = on_cpu()
    assert (target.profile, target.notes, target.warnings) == (profile, (), ())
    assert choose_target(RunSettings(), no_gpu).profile == profile
    assert on_cpu(machine=machine_name()).profile == profile
    assert on_cpu(machine="generic-cpu").profile.name == "generic-cpu"


def test_another_number_of_threads_is_another_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(5)))
    measured(threads=3)
    assert on_cpu(threads=3).notes == ()
    target = on_cpu(threads=5)
    assert target.profile.name == "generic-cpu"
    assert all(part in target.notes[0] for part in (f"{machine_name()}.json", "3 threads", "5"))


def test_a_measured_gpu_is_used_with_its_own_context_and_another_is_not() -> None:
    profile = measured("Bench GPU")
    target = choose_target(RunSettings(cuda="6"), gpu("Bench GPU", {}))
    assert profile.gpu is not None
    assert target.profile == replace(profile, gpu=replace(profile.gpu, vram_bytes=8 * GIB))
    assert (target.fixed_bytes["context"], target.notes) == (77, ())
    other = choose_target(RunSettings(cuda="6"), gpu("Other GPU", {"context": 5, "workspace": 6}))
    assert other.profile.name == "generic-gpu"
    assert other.fixed_bytes == {"context": 5, "workspace": 6}
    assert all(name in other.notes[0] for name in ("Bench GPU", "Other GPU"))
    assert on_cpu().profile == profile  # its CPU is the same


def test_what_was_measured_without_a_gpu_is_not_used_with_one() -> None:
    measured()
    target = choose_target(RunSettings(cuda="6"), gpu("Bench GPU", {}))
    assert target.profile.name == "generic-gpu"
    assert "Bench GPU" in target.notes[0]


def test_estimates_in_the_place_of_a_measured_profile_are_not_used() -> None:
    measured(estimated=True)
    assert on_cpu().profile.name == "generic-cpu"
    assert f"{machine_name()}.json" in on_cpu().notes[0]


@pytest.mark.parametrize("text", ["", "{}", "[1", '{"name": "x", "estimated": false, "cpu": {}, "gpu": null}'])
def test_a_broken_profile_is_not_used_and_every_run_says_so_in_a_line(text: str) -> None:
    path = calibration_file(machine_name())
    path.parent.mkdir(parents=True)
    path.write_text(text)
    target = on_cpu()
    assert target.profile.name == "generic-cpu"
    (warning,) = target.warnings
    assert str(path) in warning
    assert "hybrid tune --calibrate" in warning
    assert "\n" not in warning
    request = plan_request(open_for_run(RunSettings()), target, {})
    plan = place(request, lambda _: Shares(), NO_RING)
    assert warning in plan.warnings
    assert warning in plan.notes
    with pytest.raises(ProfileError, match=r"\.json: "):
        on_cpu(machine=machine_name())


def test_a_calibration_that_knew_one_rate_of_attention_is_not_used_and_a_new_one_is_asked_for() -> None:
    content = measured().to_json()
    del content["cpu"]["attention_flops_per_s"]
    path = calibration_file(machine_name())
    path.write_text(json.dumps(content))
    target = on_cpu()
    assert target.profile.name == "generic-cpu"
    (warning,) = target.warnings
    assert all(part in warning for part in (str(path), "cpu", "attention_flops_per_s", "hybrid tune --calibrate"))
    assert "attention_flops_per_s" in examine_calibration(default_threads()).text


def test_a_profile_is_written_at_once_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "new" / "machine.json"
    profile = find_profile("colab-t4")
    save_profile(profile, path)
    assert load_profile(path) == profile

    def full(self: Path, *_: object, **__: object) -> int:
        with self.open("w") as file:
            file.write("{")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(UsageError, match=r"machine\.json: .*No space left"):
        save_profile(replace(profile, name="other"), path)
    assert load_profile(path) == profile
    assert [entry.name for entry in path.parent.iterdir()] == ["machine.json"]
    assert json.loads(path.read_text())["name"] == "colab-t4"


def test_where_measured_profiles_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert calibration_file("box").parts[-3:] == ("hybrid-run", "machines", "box.json")
    monkeypatch.setenv("HOME", str(tmp_path))
    for relative in ("", "some/where"):  # not valid, as the XDG specification has it
        monkeypatch.setenv("XDG_CONFIG_HOME", relative)
        assert calibration_file("box") == tmp_path / ".config" / "hybrid-run" / "machines" / "box.json"
    monkeypatch.setattr("platform.node", lambda: "my box/../2")
    assert machine_name() == "my-box-..-2"
    monkeypatch.setattr("platform.node", lambda: "")
    assert machine_name() == "this-machine"
