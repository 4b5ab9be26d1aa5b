"""What a device refuses makes the plan smaller, and a lost device ends its use; the text is the same."""

import io
import json
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from hybrid import cli
from hybrid.config import DEMO_MODEL
from hybrid.runtime.engine import Engine
from hybrid.runtime.planning import OpenedModel
from offload.devices.base import Device
from offload.devices.cuda import CudaDevice
from offload.devices.simulated import SimulatedDevice
from offload.errors import DEVICE_MEMORY, PINNED_RAM
from offload.packing import packed_stream_bytes
from offload.placing import PlanRequest, Shares, SharesOf, place, place_linears
from offload.plan import Plan
from offload.telemetry import Timeline
from offload.units import MIB
from tests.device.emulated_cupy import EmulatedCupy
from tests.device.failing_device import FailingDevice
from tests.engines import SHARED_MODELS, engine_on, greedy, open_settings, read_golden
from tests.parity.test_golden_tokens import DEMO_GOLDEN

GOLDEN = read_golden(DEMO_GOLDEN)
BUDGET_BYTES = 3 * MIB  # resident, streamed and host columns of the demo model's 4.5 MiB
TOKENS = 6


@pytest.fixture(scope="module")
def demo() -> OpenedModel:
    return open_settings(DEMO_MODEL)


def three_ways(request: PlanRequest) -> Plan:
    """As much as fits, a part of every Linear in each place."""
    for parts in range(20, 0, -1):
        plan = place(request, may_be_pinned(request, 0.02 * parts, 0.015 * parts))
        if plan.total_vram_bytes <= request.budget_bytes:
            return plan
    return place(request, lambda _: Shares())


def may_be_pinned(request: PlanRequest, resident: float, streamed: float) -> SharesOf:
    """These shares, or less is streamed."""
    limit_bytes = request.pinned_limit_bytes
    for parts in range(10, 0, -1):
        shares = Shares(resident, streamed * parts / 10)
        placements = place_linears(request, lambda _, shares=shares: shares)  # type: ignore[misc]
        if limit_bytes is None or packed_stream_bytes(placements) <= limit_bytes:
            return lambda _, shares=shares: shares  # type: ignore[misc]
    return lambda _: Shares(resident)


def engine_for(device: Device, demo: OpenedModel, timeline: Timeline | None = None) -> Engine:
    return engine_on(device, demo, three_ways, BUDGET_BYTES, threads=1, timeline=timeline)


def tokens_of(engine: Engine) -> list[int]:
    return greedy(engine, GOLDEN.prompt_ids, TOKENS)[0]


def columns(plan: Plan) -> tuple[int, int, int]:
    """How many are resident, streamed and on the host."""
    ranges = [(len(p.resident), len(p.streamed), len(p.host)) for p in plan.placements]
    return sum(r for r, _, _ in ranges), sum(s for _, s, _ in ranges), sum(h for _, _, h in ranges)


def simulated(**failing: Any) -> FailingDevice:
    """The budget is all the memory there is, so no plan may take more."""
    return FailingDevice(SimulatedDevice(BUDGET_BYTES), **failing)


@pytest.fixture
def fine_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """A plan that shrinks by less than a MiB, for a model of a few."""
    monkeypatch.setattr("offload.recovery.MIB", 16 << 10)
    monkeypatch.setattr("offload.recovery._UNKNOWN_BYTES", 64 << 10)


def test_the_plan_has_columns_in_every_place(demo: OpenedModel) -> None:
    with closing(engine_for(simulated(), demo)) as engine:
        assert all(columns(engine.plan))
        assert engine.plan.warnings == ()
        assert tokens_of(engine) == GOLDEN.greedy_ids[:TOKENS]


@pytest.mark.usefixtures("fine_steps")
def test_every_allocation_refused_once(demo: OpenedModel) -> None:
    with closing(engine_for(simulated(), demo)) as engine:
        before = engine.plan
    kinds = []
    for number in range(1, 100):
        device = simulated(refused=(number,))
        with closing(engine_for(device, demo)) as engine:
            if not device.refusals:
                break
            assert tokens_of(engine) == GOLDEN.greedy_ids[:TOKENS]
            plan = engine.plan
            (line,) = plan.warnings
            ((asked_bytes, where),) = device.refusals
            kinds.append(where)
            if where == PINNED_RAM:
                assert line.startswith("the system refused")
                left = before.ram_bytes["pinned weights"] - asked_bytes
                assert plan.ram_bytes["pinned weights"] <= max(0, left)
            else:
                assert line.startswith("the GPU refused")
                assert plan.budget_bytes == max(0, before.total_vram_bytes - asked_bytes)
            assert device.peak_bytes <= BUDGET_BYTES
            assert BUDGET_BYTES - device.memory().free_bytes == plan.total_vram_bytes
        assert device.memory().free_bytes == BUDGET_BYTES
        del engine
        assert device.pinned_bytes == 0
    assert set(kinds) == {DEVICE_MEMORY, PINNED_RAM}
    assert len(kinds) >= 6


@pytest.mark.usefixtures("fine_steps")
@pytest.mark.parametrize("first", [1, 3, 5])
def test_everything_refused_from_some_allocation_on(demo: OpenedModel, first: int) -> None:
    device = simulated(refused=tuple(range(first, 1000)))
    with closing(engine_for(device, demo)) as engine:
        assert columns(engine.plan)[:2] == (0, 0)
        lines = engine.plan.warnings
        assert len(lines) == len(device.refusals) > 1
        assert lines[-1].endswith(": the run goes on without it")
        assert tokens_of(engine) == GOLDEN.greedy_ids[:TOKENS]
    assert device.memory().free_bytes == BUDGET_BYTES


@dataclass
class Step:
    """What a device did in one step: the number of the first operation of every level, and of the last of all."""

    levels: list[int]
    last: int


def steps_of(demo: OpenedModel, make_device: Callable[[], Any]) -> list[Step]:
    """The operations of a run in which nothing fails."""
    device = make_device()
    with closing(engine_for(device, demo)) as engine:
        steps: list[Step] = []
        run = engine._linears.run

        def count_level(level: int, inputs: Any, outputs: Any) -> None:
            if level == 0:
                steps.append(Step([], 0))
            steps[-1].levels.append(device.operations + 1)
            run(level, inputs, outputs)
            steps[-1].last = device.operations

        engine._linears.run = count_level  # type: ignore[method-assign]
        tokens_of(engine)
    return steps


def chosen_operations(step: Step) -> Iterator[int]:
    """One operation of every level, another each time."""
    for number, (start, stop) in enumerate(pairwise([*step.levels, step.last + 1])):
        if stop > start:
            yield start + number % (stop - start)


def run_with_failure(demo: OpenedModel, device: Any, timeline: Timeline | None = None) -> tuple[Plan, list[str]]:
    """A run whose device fails in the middle; gives the plan at its end and the lines that were said."""
    said: list[str] = []
    with closing(engine_for(device, demo, timeline)) as engine:
        assert engine.plan.warnings == ()
        engine.on_warning = said.append
        logits = engine.prefill(GOLDEN.prompt_ids)
        ids = [int(logits.argmax())]
        refusals_when_lost = []
        while len(ids) < TOKENS:
            ids.append(int(engine.decode(ids[-1]).argmax()))
            refusals_when_lost.append(device.asked_when_lost)
        assert ids == GOLDEN.greedy_ids[:TOKENS]
        assert engine.position == len(GOLDEN.prompt_ids) + TOKENS - 1
        plan = engine.plan
        memory = engine.memory()
        assert plan.total_vram_bytes <= memory["vram_peak_bytes"] <= memory["vram_budget_bytes"] == BUDGET_BYTES
    assert len(set(refusals_when_lost) | {device.asked_when_lost}) <= 2, "the device was used after it was lost"
    return plan, said


STEPS = {"prefill": 0, "decode": 2}


@pytest.mark.parametrize("step", STEPS)
def test_the_device_lost_at_every_level(demo: OpenedModel, step: str) -> None:
    operations = list(chosen_operations(steps_of(demo, simulated)[STEPS[step]]))
    assert len(operations) > 20
    for operation in operations:
        device = simulated(lost_at=operation)
        plan, said = run_with_failure(demo, device)
        assert said == [
            "the GPU is lost (simulated device (modelled times) failed as it was told to): the run goes on without it"
        ]
        assert list(plan.warnings) == said
        assert plan.total_vram_bytes == 0
        assert columns(plan)[:2] == (0, 0)
        assert device.peak_bytes <= BUDGET_BYTES
        assert device.pinned_bytes == 0


@pytest.mark.usefixtures("fine_steps")
@pytest.mark.parametrize("step", STEPS)
def test_memory_runs_out_at_every_level(demo: OpenedModel, step: str) -> None:
    """As when a library needs some at the first use of a kernel."""
    for operation in chosen_operations(steps_of(demo, simulated)[STEPS[step]]):
        device = simulated(short_at=operation)
        plan, said = run_with_failure(demo, device)
        assert said == list(plan.warnings)
        assert len(said) == 1
        assert said[0].startswith("the GPU ran out of VRAM: the budget is now 2.")
        assert all(columns(plan))
        assert plan.total_vram_bytes <= plan.budget_bytes < BUDGET_BYTES
        assert device.peak_bytes <= BUDGET_BYTES
        assert device.memory().free_bytes == BUDGET_BYTES


def test_old_pinned_memory_is_gone_before_new_is_asked_for(demo: OpenedModel) -> None:
    device = simulated()
    with closing(engine_for(device, demo)) as engine:
        at_load = device.peak_pinned_bytes
        device.short_at = device.operations + 5
        assert tokens_of(engine) == GOLDEN.greedy_ids[:TOKENS]
        assert len(engine.plan.warnings) == 1
    assert device.peak_pinned_bytes == at_load


def test_lost_while_weights_are_loaded(demo: OpenedModel) -> None:
    device = simulated(lost_at=4)
    with closing(engine_for(device, demo)) as engine:
        (line,) = engine.plan.warnings
        assert line.startswith("the GPU is lost")
        assert tokens_of(engine) == GOLDEN.greedy_ids[:TOKENS]
        assert engine.memory()["vram_budget_bytes"] == BUDGET_BYTES


@pytest.mark.usefixtures("fine_steps")
def test_one_failure_after_another(demo: OpenedModel) -> None:
    """VRAM at load, then in mid-run, pinned memory while that is mended, the device at last."""
    device = simulated(refused=(2,))
    with closing(engine_for(device, demo)) as engine:
        device.short_at = device.operations + 40
        device.refused = (device.allocations + 3,)
        logits = engine.prefill(GOLDEN.prompt_ids)
        ids = [int(logits.argmax())]
        device.lost_at = device.operations + 40
        while len(ids) < TOKENS:
            ids.append(int(engine.decode(ids[-1]).argmax()))
        assert ids == GOLDEN.greedy_ids[:TOKENS]
        refused, short, again, lost = engine.plan.warnings
    assert refused.startswith("the GPU refused 896 KiB of VRAM: the budget is now 2.")
    assert short.startswith("the GPU ran out of VRAM: the budget is now")
    assert again.startswith("the system refused")
    assert again.endswith("of pinned RAM: no weights are streamed now")
    assert lost.startswith("the GPU is lost")
    assert device.peak_bytes <= BUDGET_BYTES


def test_lost_at_the_end(demo: OpenedModel) -> None:
    device = simulated()
    engine = engine_for(device, demo)
    ids = tokens_of(engine)
    device.lost_at = device.operations + 1
    engine.close()
    engine.close()
    assert ids == GOLDEN.greedy_ids[:TOKENS]


@pytest.mark.parametrize("name", ["", "stories260K", "babyllama-tok105-1M"])
def test_a_host_that_had_no_columns_yet(name: str) -> None:
    """Its kernels are made when the device is lost."""
    folder = SHARED_MODELS / name if name else DEMO_MODEL
    if not folder.is_dir():
        pytest.skip(f"{folder} is absent")
    golden = read_golden(folder / "golden.json" if name else DEMO_GOLDEN)
    device = FailingDevice(SimulatedDevice(64 * MIB))
    with closing(engine_on(device, open_settings(folder), resident, 64 * MIB, threads=1)) as engine:
        assert columns(engine.plan)[1:] == (0, 0)
        device.lost_at = device.operations + 30
        ids, _ = greedy(engine, golden.prompt_ids, TOKENS)
        assert ids == golden.greedy_ids[:TOKENS]
        assert columns(engine.plan)[:2] == (0, 0)


def resident(request: PlanRequest) -> Plan:
    return place(request, lambda _: Shares(1.0 if request.budget_bytes else 0.0))


def test_the_timeline_goes_on_without_the_device(demo: OpenedModel, tmp_path: Path) -> None:
    timeline = Timeline()
    operation = steps_of(demo, simulated)[2].levels[3]
    run_with_failure(demo, simulated(lost_at=operation), timeline)
    timeline.write(tmp_path / "trace.json")
    names = [event["name"] for event in json.loads((tmp_path / "trace.json").read_text())["traceEvents"]]
    steps = TOKENS  # a prefill and all decode steps but the last token's
    assert names.count("island 0") == steps
    assert sum(name.startswith("host columns of") for name in names) > steps * len(demo.linears) // 4


def test_an_interruption_while_weights_are_loaded_again(demo: OpenedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    device = simulated()
    engine = engine_for(device, demo)
    device.short_at = device.operations + 5

    def interrupt(plan: Plan) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(engine._linears, "_build", interrupt)
    with pytest.raises(KeyboardInterrupt):
        tokens_of(engine)
    assert device.memory().free_bytes == BUDGET_BYTES
    engine.close()


# The same on CuPy's error numbers.


@pytest.fixture
def emulated(monkeypatch: pytest.MonkeyPatch) -> EmulatedCupy:
    emulation = EmulatedCupy()
    emulation.install(monkeypatch)
    monkeypatch.setattr("offload.devices.cuda.gemm_is_exact", lambda device, weight_format: True)
    return emulation


@pytest.mark.usefixtures("fine_steps")
@pytest.mark.parametrize("call", ["malloc", "hostAlloc"])
def test_cuda_refuses_every_allocation_once(emulated: EmulatedCupy, demo: OpenedModel, call: str) -> None:
    for number in range(1, 100):
        calls: list[str] = []

        def fault(name: str, calls: list[str] = calls, number: int = number) -> int:
            calls.extend([name] * (name == call))
            return 2 if name == call and len(calls) == number else 0

        emulated.fault = fault
        with closing(engine_for(CudaDevice(), demo)) as engine:
            if len(calls) < number:
                break
            (line,) = engine.plan.warnings
            assert ("VRAM" if call == "malloc" else "pinned RAM") in line
            assert tokens_of(engine) == GOLDEN.greedy_ids[:TOKENS]
            assert sum(map(len, emulated.blocks.values())) == engine.plan.total_vram_bytes
        assert emulated.blocks == {}
        del engine
        assert emulated.pinned == {}
    assert number > 2


@pytest.mark.parametrize("status", [700, 719, 214])
@pytest.mark.parametrize("call", ["memcpyAsync", "gemm", "eventRecord", "streamWaitEvent", "synchronize"])
@pytest.mark.parametrize("number", [3, 60])
def test_cuda_is_lost_in_the_middle(
    emulated: EmulatedCupy, demo: OpenedModel, call: str, status: int, number: int
) -> None:
    said: list[str] = []
    with closing(engine_for(CudaDevice(), demo)) as engine:
        engine.on_warning = said.append
        calls: list[str] = []

        def fault(name: str) -> int:
            calls.extend([name] * (name == call))
            if name != call or len(calls) != number:
                return 0
            emulated.broken = status
            return 14 if call == "gemm" else status

        emulated.fault = fault
        logits = engine.prefill(GOLDEN.prompt_ids)
        ids = [int(logits.argmax())]
        while len(ids) < TOKENS:
            ids.append(int(engine.decode(ids[-1]).argmax()))
            if said:
                entered = emulated.entered
                emulated.fault = pytest.fail
        assert ids == GOLDEN.greedy_ids[:TOKENS]
    assert said == [f"the GPU is lost (Emulated GPU failed: cudaError {status}): the run goes on without it"]
    assert emulated.entered == entered, "the device was used after it was lost"


def prefill_streams_all(request: PlanRequest) -> Plan:
    if not request.budget_bytes:
        return place(request, lambda _: Shares())
    return place(request, lambda _: Shares(0.3, 0.1, prefill=0.7), prefill_tokens=2)


@pytest.mark.parametrize("call", ["", "hostRegister", "memcpyAsync"])
def test_cuda_is_lost_with_host_columns_registered(emulated: EmulatedCupy, demo: OpenedModel, call: str) -> None:
    """While they are registered, in the middle of prefill, or not at all."""
    calls: list[str] = []

    def fault(name: str) -> int:
        calls.extend([name] * (name == call))
        return 719 if name == call and len(calls) == (1 if name == "hostRegister" else 300) else 0

    emulated.fault = fault
    with closing(engine_on(CudaDevice(), demo, prefill_streams_all, 8 * MIB, threads=1)) as engine:
        assert bool(emulated.registered) == (call != "hostRegister")  # there it is lost at once
        assert tokens_of(engine) == GOLDEN.greedy_ids[:TOKENS]
        assert len(engine.plan.warnings) == (1 if call else 0)
        assert columns(engine.plan)[2] > 0
        assert (engine.plan.total_vram_bytes == 0) == bool(call)
    assert call or not emulated.registered


def test_cuda_refuses_to_register_host_columns(emulated: EmulatedCupy, demo: OpenedModel) -> None:
    """Prefill then streams what decode does, and a plan that is made anew says so once."""
    emulated.register_error = 2
    calls: list[str] = []

    def fault(name: str) -> int:
        calls.extend([name] * (name == "malloc"))
        return 2 if name == "malloc" and len(calls) == 2 else 0

    emulated.fault = fault
    with closing(engine_on(CudaDevice(), demo, prefill_streams_all, 8 * MIB, threads=1)) as engine:
        refused, registered = engine.plan.warnings
        assert refused.startswith("the GPU refused")
        assert registered.startswith("prefill streams no host columns: ")
        assert "cannot be page-locked: out of pinned RAM" in registered
        assert tokens_of(engine) == GOLDEN.greedy_ids[:TOKENS]


def test_cublas_without_memory_takes_a_smaller_plan(emulated: EmulatedCupy, demo: OpenedModel) -> None:
    said: list[str] = []
    with closing(engine_for(CudaDevice(), demo)) as engine:
        engine.on_warning = said.append
        calls: list[str] = []

        def fault(name: str) -> int:
            calls.extend([name] * (name == "gemm"))
            return 3 if name == "gemm" and len(calls) == 40 else 0

        emulated.fault = fault
        assert tokens_of(engine) == GOLDEN.greedy_ids[:TOKENS]
        assert len(said) == 1
        assert said[0].startswith("the GPU ran out of VRAM")


# What people see.


@pytest.mark.parametrize(
    ("command", "options"), [("run", []), ("run", ["--stats", "json"]), ("chat", ["--chat-template", "none"])]
)
def test_the_commands_say_so_and_go_on(
    command: str, options: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ["--device", "simulated", "--cuda", "200MiB", "--max-tokens", "8", "--threads", "1", "--temperature", "0"]
    arguments = [command, *where, *options, *(["Once upon a time"] if command == "run" else [])]

    def text() -> tuple[str, list[str]]:
        monkeypatch.setattr("sys.stdin", io.StringIO("Once upon a time\n"))
        assert cli.main(arguments) == 0
        out, err = capsys.readouterr()
        return out, err.splitlines()

    expected, _ = text()
    real = SimulatedDevice
    failing = "offload.devices.simulated.SimulatedDevice"
    monkeypatch.setattr(failing, lambda *arguments: FailingDevice(real(*arguments), lost_at=500))
    out, err = text()
    assert out == expected
    (note,) = (line for line in err if "the GPU is lost" in line and line.startswith("note: "))
    assert note.endswith("the run goes on without it")
    if "json" in options:
        assert json.loads(err[-1])["warnings"] == [note.removeprefix("note: ")]
        assert json.loads(err[-1])["plan"]["host_bytes"] > 0 == json.loads(err[-1])["plan"]["resident_bytes"]
