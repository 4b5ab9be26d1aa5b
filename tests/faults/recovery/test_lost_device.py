"""A device that is lost ends its use; the text is the same. Wherever it happens: see test_faults.py."""

import io
import json
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from hybrid.cli import main as cli
from hybrid.loading.opened_model import OpenedModel
from hybrid.loading.settings import DEMO_MODEL
from offload.devices.simulated.device import SimulatedDevice
from offload.observe.timeline import Timeline
from offload.plan.placing import place
from offload.plan.plan import Plan
from offload.plan.request import PlanRequest
from offload.plan.shares import Shares
from offload.spec.units import MIB
from tests.device.failing_device import FailingDevice
from tests.engines import SHARED_MODELS, engine_on, greedy, open_settings, read_golden
from tests.faults.recovery.engines import BUDGET_BYTES, GOLDEN, TOKENS, columns, engine_for, simulated, tokens_of
from tests.parity.test_golden_tokens import DEMO_GOLDEN


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
    timeline, device = Timeline(), simulated()
    with closing(engine_for(device, demo, timeline)) as engine:
        device.lost_at = device.operations + 600  # in the third step
        assert tokens_of(engine) == GOLDEN.greedy_ids[:TOKENS]
        assert len(engine.plan.warnings) == 1
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
    failing = "offload.devices.simulated.device.SimulatedDevice"
    monkeypatch.setattr(failing, lambda *arguments: FailingDevice(real(*arguments), lost_at=500))
    out, err = text()
    assert out == expected
    (note,) = (line for line in err if "failed as it was told to" in line and line.startswith("note: "))
    if "json" in options:
        assert json.loads(err[-1])["warnings"] == [note.removeprefix("note: ")]
        assert json.loads(err[-1])["plan"]["host_bytes"] > 0 == json.loads(err[-1])["plan"]["resident_bytes"]
