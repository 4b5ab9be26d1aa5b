"""The budget of `--cuda` against a driver that rounds up and takes memory for itself, from the flag to the last line.

The emulation counts what the process takes; NVML, where it answers, says so.
"""

import json
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from hybrid.cli import main as cli
from hybrid.engine.engine import Engine
from hybrid.loading.open_engine import open_engine
from hybrid.loading.settings import DEMO_MODEL, RunSettings
from hybrid.loading.target import find_profile
from offload.devices.cuda.device import CudaDevice
from offload.devices.cuda.vram_meter import GRANULE_BYTES
from offload.errors import DeviceLostError, DeviceUnavailableError, OutOfDeviceMemoryError
from offload.plan.plan import Plan
from offload.plan.request import CHUNK_TOKENS
from offload.spec.linear import LinearSpec, WeightFormat
from offload.spec.units import MIB, format_bytes
from tests.device.emulated_driver import EmulatedDriver
from tests.engines import greedy, read_golden
from tests.fake_nvml import MY_PID, FakeNvml, NVMLError
from tests.parity.test_golden_tokens import DEMO_GOLDEN
from tests.unit.show.test_status_line import Terminal

GOLDEN = read_golden(DEMO_GOLDEN)
TOKENS = 8
HIDDEN_BYTES = 7 * MIB  # more than is kept for the driver


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Iterator[EmulatedDriver]:
    emulation = EmulatedDriver()
    emulation.install(monkeypatch)
    monkeypatch.setattr("offload.devices.cuda.device._context_bytes", {})
    yield emulation
    assert not [thread for thread in threading.enumerate() if thread.name == "gpu monitor"]


@pytest.fixture
def nvml(driver: EmulatedDriver, monkeypatch: pytest.MonkeyPatch) -> FakeNvml:
    return FakeNvml(lambda: driver.own_bytes, others_bytes=100 * MIB).install(monkeypatch)


@pytest.fixture
def machine(tmp_path: Path) -> str:
    """A machine on which even the smallest Linear is worth a round trip."""
    profile = find_profile("generic-gpu")
    rates = {name: {1: 1e6} for name in WeightFormat}
    slow = replace(profile, cpu=replace(profile.cpu, multiply_bytes_per_s=rates))
    path = tmp_path / "slow-cpu.json"
    path.write_text(json.dumps(slow.to_json()))
    return str(path)


def opened(budget_bytes: int, machine: str, **settings: Any) -> Engine:
    budget = f"{budget_bytes / MIB}MiB"
    return open_engine(RunSettings(DEMO_MODEL, cuda=budget, device="cuda", machine=machine, threads=1, **settings))


def note_of(plan: Plan) -> str:
    return next((note for note in plan.notes if "the GPU's driver takes up to" in note), "")


@dataclass(frozen=True)
class Needs:
    """Bytes that a run takes: what is fixed and kept for the driver, activations, all weights."""

    fixed: int
    activations: int
    weights: int

    def budget_for(self, share: float) -> int:
        """A budget for this share of the weights, and some bytes that are no whole granule."""
        return self.fixed + self.activations + int(share * self.weights) + 12_345


_NEEDS: list[Needs] = []  # measured once, for they are the same in every test


@pytest.fixture
def needs(driver: EmulatedDriver, machine: str) -> Needs:
    CudaDevice().close()
    if not _NEEDS:
        fixed_bytes = driver.own_bytes + 3 * GRANULE_BYTES
        with opened(fixed_bytes + 256 * MIB, machine) as engine:
            vram = engine.plan.vram_bytes
        _NEEDS.append(Needs(fixed_bytes, vram["activations"], vram["weights"]))
    driver.peak_bytes = 0
    return _NEEDS[0]


@pytest.mark.parametrize("share", [0.6, 0.9, 10.0])
def test_no_byte_above_the_budget_though_the_driver_rounds_up(
    share: float, driver: EmulatedDriver, nvml: FakeNvml, needs: Needs, machine: str
) -> None:
    budget_bytes = needs.budget_for(share)
    with opened(budget_bytes, machine) as engine:
        assert greedy(engine, GOLDEN.prompt_ids, TOKENS)[0] == GOLDEN.greedy_ids[:TOKENS]
        plan, memory = engine.plan, engine.memory()
        assert 0 < plan.vram_bytes["weights"] <= needs.weights
        assert (plan.vram_bytes["weights"] == needs.weights) == (share >= 1)
        assert [len(block) for block in driver.blocks.values()][-1] == plan.vram_bytes["weights"], "they come last"
        assert driver.peak_bytes <= budget_bytes
        assert memory["vram_bytes"] == driver.own_bytes
        assert driver.own_bytes <= memory["vram_peak_bytes"] <= driver.peak_bytes
        assert memory["vram_peak_source"] == "process"
        assert (plan.warnings, note_of(plan)) == ((), ""), "what rounding takes was kept for it"
    assert nvml.started == 0


@pytest.mark.parametrize("kilobytes", [0, 100, 300, 1000])
def test_a_budget_that_holds_no_linear_holds_tiles_or_is_said_to_hold_nothing(
    kilobytes: int, driver: EmulatedDriver, nvml: FakeNvml, needs: Needs, machine: str
) -> None:
    """So much above what is fixed; the largest Linear takes a MiB, and activations of its columns come on top."""
    budget_bytes = needs.fixed + (kilobytes << 10)
    with opened(budget_bytes, machine) as engine:
        assert greedy(engine, GOLDEN.prompt_ids, TOKENS)[0] == GOLDEN.greedy_ids[:TOKENS]
        placements, warnings = engine.plan.placements, engine.plan.warnings
    assert all(len(placement.host) for placement in placements if placement.linear.name == "lm_head")
    is_used = any(placement.on_device for placement in placements)
    assert is_used != any("the GPU is not used" in warning for warning in warnings)
    assert driver.peak_bytes <= budget_bytes


@pytest.mark.parametrize(
    ("call", "number", "source"),
    [("malloc", 1, "process"), ("streamCreate", 2, "process"), ("malloc", 1, "device"), ("streamCreate", 2, "cuda")],
)
def test_what_the_driver_takes_for_itself_makes_the_resident_block_smaller(
    call: str,
    number: int,
    source: str,
    driver: EmulatedDriver,
    nvml: FakeNvml,
    needs: Needs,
    machine: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With the activations, before the block; with the stream that loads, after it."""
    if source != "process":
        nvml.refused["processes" if source == "device" else "init"] = NVMLError(3)
    hide_after_warm_up(driver, monkeypatch, call, number)
    said: list[str] = []
    budget_bytes = needs.budget_for(1.0)
    with opened(budget_bytes, machine) as engine:
        engine.on_warning = said.append
        assert greedy(engine, GOLDEN.prompt_ids, TOKENS)[0] == GOLDEN.greedy_ids[:TOKENS]
        assert 0 < engine.plan.vram_bytes["weights"] < needs.weights
        assert driver.own_bytes <= budget_bytes
        assert driver.peak_bytes <= budget_bytes or call == "streamCreate"
        assert (engine.plan.warnings, said) == ((), [])
        assert note_of(engine.plan)
        assert engine.plan.budget_bytes == budget_bytes
        assert engine.memory()["vram_peak_source"] == source


@pytest.mark.parametrize(("prefill_only", "refused"), [(True, ""), (False, "init")])
def test_what_the_driver_takes_in_mid_run_is_given_back_by_the_resident_block(
    prefill_only: bool, refused: str, driver: EmulatedDriver, nvml: FakeNvml, needs: Needs, machine: str
) -> None:
    """As when a step of so many tokens is the first to need some kernel of cuBLAS."""
    if refused:
        nvml.refused[refused] = NVMLError(3)
    budget_bytes = needs.budget_for(1.0)
    with opened(budget_bytes, machine) as engine:
        all_bytes = engine.plan.vram_bytes["weights"]
        left = [HIDDEN_BYTES]

        def hidden(name: str, number: int) -> int:
            return left.pop() if left else 0

        if prefill_only:
            driver.hide(hidden)
        engine.prefill(GOLDEN.prompt_ids)
        driver.hide(hidden)
        engine.decode(GOLDEN.greedy_ids[0])
        assert driver.peak_bytes > budget_bytes
        assert driver.own_bytes <= budget_bytes
        assert 0 < engine.plan.vram_bytes["weights"] < all_bytes
        assert note_of(engine.plan)
        engine.trim(0)
        assert greedy(engine, GOLDEN.prompt_ids, TOKENS)[0] == GOLDEN.greedy_ids[:TOKENS]


def hide_after_warm_up(driver: EmulatedDriver, monkeypatch: pytest.MonkeyPatch, call: str, number: int) -> None:
    """The driver takes HIDDEN_BYTES at this call of the run."""
    warm_up = CudaDevice.warm_up

    def warm_up_and_hide(*arguments: Any) -> None:
        warm_up(*arguments)
        driver.hide(lambda *seen: HIDDEN_BYTES if seen == (call, number) else 0)

    monkeypatch.setattr(CudaDevice, "warm_up", warm_up_and_hide)


def test_a_driver_that_takes_everything_leaves_the_run_to_the_cpu(
    driver: EmulatedDriver, nvml: FakeNvml, needs: Needs, machine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    hide_after_warm_up(driver, monkeypatch, "malloc", 1)
    monkeypatch.setattr("tests.faults.test_vram_cap.HIDDEN_BYTES", 512 * MIB)
    with opened(needs.budget_for(1.0), machine) as engine:
        assert greedy(engine, GOLDEN.prompt_ids, TOKENS)[0] == GOLDEN.greedy_ids[:TOKENS]
        (line,) = engine.plan.warnings
        assert re.search(r"\b5\d\d MiB", line)
        assert engine.plan.total_vram_bytes == 0


def test_what_a_warm_up_loads_is_known_to_the_first_plan(
    driver: EmulatedDriver, nvml: FakeNvml, needs: Needs, machine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even where the device does not count it among what it takes."""
    warmed: list[tuple[list[str], int]] = []

    def warm_up(device: CudaDevice, linears: list[LinearSpec], chunk_tokens: int) -> None:
        warmed.append((sorted({linear.format for linear in linears}), chunk_tokens))
        driver.hide(lambda *seen: HIDDEN_BYTES if seen == ("malloc", 1) else 0)
        device.free(device.allocate(1))

    monkeypatch.setattr(CudaDevice, "warm_up", warm_up)
    with opened(needs.budget_for(1.0) + HIDDEN_BYTES, machine, host_dtype="int8") as engine:
        assert engine.plan.vram_bytes["driver"] == HIDDEN_BYTES + 3 * GRANULE_BYTES
        assert (engine.plan.vram_bytes["weights"], note_of(engine.plan)) == (needs.weights, "")
    assert warmed == [(["fp16", "int8"], CHUNK_TOKENS)]


@pytest.mark.parametrize("error", [OutOfDeviceMemoryError(1, 2, 3, "device memory"), DeviceLostError("gone")])
def test_a_gpu_that_cannot_be_warmed_up_is_not_used(
    error: Exception, driver: EmulatedDriver, nvml: FakeNvml, monkeypatch: pytest.MonkeyPatch
) -> None:
    def warm_up(*_: Any) -> None:
        raise error

    monkeypatch.setattr(CudaDevice, "warm_up", warm_up)
    with open_engine(RunSettings(DEMO_MODEL)) as engine:
        assert "Emulated GPU" in engine.target
        assert engine.monitor is None
    with pytest.raises(DeviceUnavailableError, match="--cuda 1: Emulated GPU cannot be warmed up"):
        open_engine(RunSettings(DEMO_MODEL, cuda="1"))
    assert nvml.started == 0


def test_a_context_that_is_not_used_is_told_all_the_same(
    driver: EmulatedDriver, nvml: FakeNvml, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a budget that is too small; the context can only be given back by the end of the process."""
    flags = ["run", "--device", "cuda", "--cuda", "3MiB", "--max-tokens", "1", "--stats", "json", "Once"]
    assert cli.main(flags) == 0
    stats = json.loads(capsys.readouterr().err.splitlines()[-1])
    memory = stats["memory"]
    assert stats["gpu"] is None
    assert (memory["vram_planned_bytes"], memory["vram_peak_source"]) == (0, "process")
    assert memory["vram_peak_bytes"] == driver.context_bytes > memory["vram_budget_bytes"]


# What people and programs see.


def command(needs: Needs, machine: str, *flags: str) -> list[str]:
    budget = ["--cuda", f"{needs.budget_for(0.9) / MIB}MiB", "--device", "cuda", "--machine", machine, "--threads", "1"]
    return ["run", *budget, "--max-tokens", "8", "--temperature", "0", *flags, "Once upon a time"]


@pytest.mark.parametrize(
    ("source", "not_told"),
    [
        ("process", {}),
        ("device", {"process memory": "the driver does not list this process"}),
        ("cuda", {"NVML": "no NVIDIA driver found (error 9)"}),
    ],
)
def test_programs_are_told_the_measured_peak_and_who_measured_it(
    source: str,
    not_told: dict[str, str],
    driver: EmulatedDriver,
    nvml: FakeNvml,
    needs: Needs,
    machine: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if source == "device":
        del nvml.pids[MY_PID]
    elif source == "cuda":
        nvml.refused["init"] = NVMLError(9)
    assert cli.main(command(needs, machine, "--stats", "json")) == 0
    stats = json.loads(capsys.readouterr().err.splitlines()[-1])
    memory = stats["memory"]
    assert memory["vram_peak_source"] == source
    assert driver.context_bytes < memory["vram_bytes"] <= memory["vram_peak_bytes"] <= driver.peak_bytes
    assert driver.peak_bytes <= memory["vram_budget_bytes"] == needs.budget_for(0.9)
    assert memory["vram_planned_bytes"] == stats["plan"]["vram_bytes"]
    assert list(stats["gpu"]) == ["busy", "memory_busy", "received_bytes_per_s", "sent_bytes_per_s", "not_told"]
    assert stats["gpu"]["not_told"] == not_told


def test_verbose_sums_up_what_the_gpu_did(
    nvml: FakeNvml,
    needs: Needs,
    machine: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    nvml.refused["utilisation"] = NVMLError(3)
    nvml.kilobytes_per_s = {0: 2, 1: 4096}
    monkeypatch.setattr("offload.observe.gpu_monitor._PERIOD_S", 0.001)
    assert cli.main(command(needs, machine, "--verbose")) == 0
    closing, summary = capsys.readouterr().err.splitlines()[-2:]
    assert re.search(
        rf" · VRAM peak 1\d\.\d\d MiB of {format_bytes(needs.budget_for(0.9))} \(this process, NVML\) · ", closing
    )
    assert summary == (
        "bus in 3.91 MiB/s, at most 3.91 MiB/s · out 1.95 KiB/s, at most 1.95 KiB/s"
        " · utilisation not told (Not Supported)"
    )


def test_verbose_shows_the_gpu_at_work_on_a_terminal(
    nvml: FakeNvml, needs: Needs, machine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    assert cli.main(command(needs, machine)) == 0
    assert "- · VRAM" not in terminal.shown()
    assert cli.main(command(needs, machine, "--verbose")) == 0
    terminal.hang_up()
    assert re.search(r"- · VRAM 1\d\.\d\d MiB", terminal.shown())


@pytest.mark.parametrize("device", ["cpu", "simulated"])
def test_other_devices_are_not_watched(device: str, nvml: FakeNvml, capsys: pytest.CaptureFixture[str]) -> None:
    budget = [] if device == "cpu" else ["--cuda", "200MiB"]
    where = ["run", "--device", device, *budget, "--max-tokens", "2", "--temperature", "0", "Once"]
    assert cli.main([*where, "--stats", "json"]) == 0
    stats = json.loads(capsys.readouterr().err.splitlines()[-1])
    assert stats["gpu"] is None
    assert stats["memory"]["vram_peak_source"] == ("plan" if device == "cpu" else "modelled")
    assert cli.main([*where, "--verbose"]) == 0
    assert ("(modelled)" in capsys.readouterr().err.splitlines()[-1]) == (device == "simulated")
    assert nvml.asked == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_the_thread_ends_with_the_run_whatever_ends_it(
    error: type[BaseException], nvml: FakeNvml, needs: Needs, machine: str
) -> None:
    def interrupted() -> None:
        with opened(needs.budget_for(0.9), machine) as engine:
            assert [thread for thread in threading.enumerate() if thread.name == "gpu monitor"]
            engine.prefill(GOLDEN.prompt_ids)
            raise error

    with pytest.raises(error):
        interrupted()
    assert nvml.started == 0


def test_a_load_that_fails_leaves_nothing_behind(
    driver: EmulatedDriver, nvml: FakeNvml, needs: Needs, machine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hybrid.loading.open_engine.load_islands", lambda *_, **__: pytest.fail("no islands"))
    with pytest.raises(pytest.fail.Exception):
        opened(needs.budget_for(0.9), machine)
    assert (driver.blocks, nvml.started) == ({}, 0)
