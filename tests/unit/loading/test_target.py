"""Targets of runs, for every combination of --cuda, --device and --machine, with and without a GPU."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from hybrid.errors import DeviceUnavailableError, UsageError
from hybrid.loading.settings import RunSettings
from hybrid.loading.target import GpuFacts, choose_target, look_in_profile
from hybrid.machine.profiles import find_profile
from offload.errors import BudgetError, ProfileError
from offload.machine.profile import DeviceProfile
from offload.spec.units import GIB, MIB

Look = Callable[[int, DeviceProfile], GpuFacts]
FACTS = GpuFacts("Bench GPU", 7 * GIB, 8 * GIB, {"context": 100 * MIB, "workspace": 30 * MIB})


def no_gpu(ordinal: int, profile: DeviceProfile) -> GpuFacts:
    raise DeviceUnavailableError("no NVIDIA driver")


def a_gpu(ordinal: int, profile: DeviceProfile) -> GpuFacts:
    return FACTS


def never(ordinal: int, profile: DeviceProfile) -> GpuFacts:
    raise AssertionError("the GPU was looked at")


@pytest.mark.parametrize(
    "settings",
    [
        RunSettings(cuda="0"),
        RunSettings(cuda="0%"),
        RunSettings(device="cpu"),
        RunSettings(device="cpu", cuda="0"),
        RunSettings(device="cuda", cuda="0"),
        RunSettings(device="simulated", cuda="0"),
    ],
)
def test_what_asks_for_the_cpu_never_looks_for_a_gpu(settings: RunSettings) -> None:
    target = choose_target(settings, never)
    assert (target.device, target.budget.nbytes, target.fixed_bytes) == ("cpu", 0, {})
    assert (target.profile.name, target.why) == ("generic-cpu", "as asked")


def test_without_cuda_a_missing_gpu_means_the_cpu_and_says_why() -> None:
    target = choose_target(RunSettings(), no_gpu)
    assert (target.device, target.budget.nbytes) == ("cpu", 0)
    assert "no NVIDIA driver" in target.why


@pytest.mark.parametrize(
    ("settings", "asked"),
    [
        (RunSettings(cuda="6"), "--cuda 6"),
        (RunSettings(cuda="auto"), "--cuda auto"),
        (RunSettings(cuda="80%", device="cuda:1"), "--cuda 80%"),
        (RunSettings(device="cuda"), "--device cuda"),
        (RunSettings(device="cuda:3"), "--device cuda:3"),
    ],
)
def test_what_asks_for_a_gpu_never_runs_elsewhere(settings: RunSettings, asked: str) -> None:
    with pytest.raises(DeviceUnavailableError) as caught:
        choose_target(settings, no_gpu)
    message = str(caught.value)
    assert message.startswith(f"{asked}: no NVIDIA driver; ")
    assert "--cuda 0" in message
    assert "--device simulated" in message


def test_a_gpu_that_is_there_is_used_with_its_own_name_and_size() -> None:
    target = choose_target(RunSettings(cuda="6"), a_gpu)
    assert (target.device, target.ordinal, target.budget.nbytes) == ("cuda", 0, 6 * GIB)
    assert target.fixed_bytes == FACTS.fixed_bytes
    assert target.profile.gpu is not None
    assert (target.profile.gpu.name, target.profile.gpu.vram_bytes) == ("Bench GPU", 8 * GIB)
    assert target.why == "Bench GPU, 7.00 GiB of 8.00 GiB free"
    automatic = choose_target(RunSettings(), a_gpu)
    assert automatic.device == "cuda"
    assert 6 * GIB < automatic.budget.nbytes < 7 * GIB


def test_the_ordinal_is_handed_on() -> None:
    seen: list[int] = []

    def look(ordinal: int, profile: DeviceProfile) -> GpuFacts:
        seen.append(ordinal)
        return FACTS

    assert choose_target(RunSettings(device="cuda:2"), look).ordinal == 2
    assert seen == [2]


def test_more_than_is_free_is_clamped_with_a_note() -> None:
    budget = choose_target(RunSettings(cuda="12"), a_gpu).budget
    assert budget.nbytes == 7 * GIB
    assert "12.00 GiB" in budget.note
    assert "7.00 GiB" in budget.note


def test_a_named_machine_stands_as_it_is() -> None:
    target = choose_target(RunSettings(cuda="6", machine="laptop-8gb"), look_in_profile)
    assert target.profile == find_profile("laptop-8gb")
    assert choose_target(RunSettings(machine="laptop-8gb"), a_gpu).profile == target.profile
    assert target.profile.gpu is not None
    assert target.fixed_bytes == {
        "context": target.profile.gpu.context_bytes,
        "workspace": target.profile.gpu.workspace_bytes,
    }


def test_the_simulated_device_needs_no_gpu_and_says_that_its_times_are_modelled() -> None:
    target = choose_target(RunSettings(device="simulated", cuda="1"), never)
    assert (target.device, target.profile.name, target.budget.nbytes) == ("simulated", "toy", GIB)
    assert target.why == "simulated toy GPU, its times are modelled"


def test_the_cpu_and_a_budget_contradict_each_other() -> None:
    with pytest.raises(UsageError, match=r"--device cpu .*--cuda 6"):
        choose_target(RunSettings(device="cpu", cuda="6"), never)


@pytest.mark.parametrize("device", ["gpu", "cuda:", "cuda:-1", "cuda:one", "CUDA", "", "cpu:0", "simulated:1"])
def test_unknown_devices_are_refused_by_name(device: str) -> None:
    with pytest.raises(UsageError, match=f"--device {device}: .*auto, cpu, cuda, cuda:N or simulated"):
        choose_target(RunSettings(device=device), never)


@pytest.mark.parametrize("settings", [RunSettings(), RunSettings(cuda="0"), RunSettings(device="simulated")])
def test_unknown_machines_are_refused_with_those_there_are(settings: RunSettings) -> None:
    settings = RunSettings(cuda=settings.cuda, device=settings.device, machine="cray-1")
    with pytest.raises(UsageError, match=r"--machine cray-1: .* colab-t4, .*generic-cpu"):
        choose_target(settings, a_gpu)


def test_a_machine_may_be_a_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(find_profile("colab-t4").to_json() | {"name": "mine"}))
    assert choose_target(RunSettings(cuda="6", machine=str(path)), look_in_profile).profile.name == "mine"
    with pytest.raises(ProfileError, match=r"absent\.json: "):
        choose_target(RunSettings(machine=str(tmp_path / "absent.json")), a_gpu)


@pytest.mark.parametrize("device", ["auto", "simulated"])
def test_a_machine_without_a_gpu_cannot_have_a_budget(device: str) -> None:
    with pytest.raises(UsageError, match=r"--machine generic-cpu: .*--cuda 0"):
        choose_target(RunSettings(cuda="6", device=device, machine="generic-cpu"), look_in_profile)


def test_a_budget_that_cannot_be_read_is_refused_before_anything_else() -> None:
    with pytest.raises(BudgetError, match="--cuda lots"):
        choose_target(RunSettings(cuda="lots"), never)
