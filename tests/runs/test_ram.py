"""--ram: what it says, what it is without, and that a process keeps to it."""

import json
import shutil
import subprocess
import sys
import threading
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench.models import write_folder
from bench.random_weights import DTYPES, Weights
from bench.shapes import Shape
from hybrid.cli import main as cli
from hybrid.errors import OffloadError, UsageError
from hybrid.loading import open_engine as loading
from hybrid.loading import planning
from hybrid.loading.open_engine import open_engine
from hybrid.loading.opened_model import open_for_run
from hybrid.loading.planning import make_plan, plan_request
from hybrid.loading.settings import DEMO_MODEL, RunSettings
from hybrid.loading.target import choose_target, look_in_profile
from hybrid.machine.memory import MemoryWatch
from hybrid.machine.ram import Ram, RamBudget, resolve_ram
from hybrid.show.disk_text import disk_text, without_disk
from hybrid.show.report import opening_lines
from hybrid.tune.zero_model import ZeroShape
from offload.errors import RamBudgetError
from offload.plan.plan import HostTier
from offload.run.recovery import Replanner
from offload.spec.units import GIB, MIB
from tests.block_models import open_zero_blocks
from tests.fakes import RecordedProgress, small_plan
from tests.unit.plan.test_planner import request

REPOSITORY = Path(__file__).parents[2]
RAM = Ram(16 * GIB, 10 * GIB)

# 4 layers of 44.0 M fp16 weights: 336 MiB. A process that held them would take 560 MiB.
SHAPE = Shape(4, 2048, 5632, 32, 4, 64, 512, max_positions=512)


@pytest.mark.parametrize(
    ("asked", "nbytes"), [("4", 4 * GIB), ("800MiB", 800 * MIB), ("25%", 4 * GIB), ("auto", 8 * GIB), (None, 8 * GIB)]
)
def test_a_cap_is_what_was_asked_for_or_most_of_what_is_available(asked: str | None, nbytes: int) -> None:
    assert resolve_ram(RunSettings(ram=asked).ram_budget, RAM) == RamBudget(
        nbytes, asked=asked not in ("auto", None), most_bytes=8 * GIB
    )


def test_more_than_is_available_is_clamped_and_said() -> None:
    budget = resolve_ram(RunSettings(ram="12").ram_budget, RAM)
    assert budget is not None
    assert (budget.nbytes, budget.asked, budget.most_bytes) == (10 * GIB, True, 8 * GIB)
    assert budget.note == "asked for 12.00 GiB of RAM, 10.00 GiB of 16.00 GiB are available: the cap is 10.00 GiB"


def test_where_ram_cannot_be_read_only_sizes_are_caps() -> None:
    assert resolve_ram(RunSettings(ram=None).ram_budget, None) is None
    assert resolve_ram(RunSettings(ram="2").ram_budget, None) == RamBudget(2 * GIB, asked=True)
    with pytest.raises(UsageError, match=r"--ram 50%: .* give a size"):
        resolve_ram(RunSettings(ram="50%").ram_budget, None)


@pytest.mark.parametrize("asked", ["-1", "120%", "lots"])
def test_what_is_no_size_is_refused_by_its_own_name(asked: str) -> None:
    with pytest.raises(OffloadError, match=rf"^--ram {asked}"):
        resolve_ram(RunSettings(ram=asked).ram_budget, RAM)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Any:
    path = tmp_path_factory.mktemp("model")
    write_folder(path, SHAPE, Weights(DTYPES["fp16"]))
    yield path
    shutil.rmtree(path)


def test_a_plan_adds_up_to_at_most_its_cap(folder: Path) -> None:
    for ram in ("420MiB", "450MiB", "550MiB", "2"):
        plan = make_plan(RunSettings(model=folder, cuda="0", ram=ram))
        assert plan.ram_budget_bytes is not None
        assert plan.total_ram_bytes <= plan.ram_budget_bytes
        in_files = [p for p in plan.placements if p.tier is HostTier.FILE]
        assert bool(in_files) == (ram != "2")
        assert any("read from the disk at every step" in warning for warning in plan.warnings) == bool(in_files)


def test_a_plan_for_another_machine_keeps_to_that_machines_ram(folder: Path) -> None:
    plan = make_plan(RunSettings(model=folder, cuda="0", machine="colab-t4"))
    assert plan.ram_budget_bytes == int(0.8 * plan.machine["cpu"]["ram_bytes"])
    assert not plan.ram_is_asked


def test_a_cap_that_is_too_small_names_the_least_that_would_do(folder: Path) -> None:
    with pytest.raises(RamBudgetError, match=r"--ram of 100 MiB is too small: at the least .* lower --context") as no:
        make_plan(RunSettings(model=folder, cuda="0", ram="100MiB"))
    least = make_plan(RunSettings(model=folder, cuda="0", ram=f"{-(-no.value.least_bytes // MIB)}MiB"))
    assert least.total_ram_bytes == no.value.least_bytes


def test_a_machine_with_too_little_ram_is_told_but_not_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "read_ram", lambda limits: Ram(GIB, 100 * MIB))
    plan = make_plan(RunSettings(model=folder, cuda="0"))
    assert all(placement.tier is HostTier.FILE for placement in plan.placements)
    assert any("of RAM are needed" in warning for warning in plan.warnings)


def test_what_runs_outside_onnxruntime_does_not_depend_on_the_plan(tmp_path: Path) -> None:
    write_folder(tmp_path, Shape(8, 512, 2048, 8, 4, 64, 2000, max_positions=64), Weights(DTYPES["fp32"]))
    opened = open_for_run(RunSettings(model=tmp_path))
    assert opened.outside == opened.linears
    settings = RunSettings(model=tmp_path, cuda="0", ram="1")
    roomy = make_plan(settings)
    tight = make_plan(replace(settings, ram=f"{roomy.total_ram_bytes // MIB - 4}MiB"))
    assert {placement.tier for placement in roomy.placements} == {HostTier.RAM}
    assert {placement.tier for placement in tight.placements} == set(HostTier)


def test_a_process_keeps_to_its_cap(folder: Path) -> None:
    code = (
        "import sys, json\n"
        "from hybrid.loading.settings import RunSettings\n"
        "from hybrid.loading.open_engine import open_engine\n"
        "with open_engine(RunSettings(model=sys.argv[1], cuda='0', ram='440MiB', threads=2)) as engine:\n"
        "    engine.prefill(list(range(300)))\n"
        "    engine.decode(1)\n"
        "    print(json.dumps(engine.memory()))\n"
    )
    run = subprocess.run([sys.executable, "-c", code, folder], cwd=REPOSITORY, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    memory = json.loads(run.stdout)
    assert memory["ram_cap_bytes"] == 440 * MIB
    assert 200 * MIB < memory["ram_peak_bytes"] <= 440 * MIB
    assert 0 < memory["ram_anonymous_peak_bytes"] <= memory["ram_peak_bytes"]
    assert 0 < memory["ram_file_peak_bytes"] <= memory["ram_peak_bytes"]


def test_a_process_keeps_to_its_cap_with_weights_in_blocks(tmp_path: Path) -> None:
    """440 MiB of them: a process that holds them takes 650 MiB."""
    code = (
        "import sys, json\n"
        "from pathlib import Path\n"
        "from hybrid.loading.settings import RunSettings\n"
        "from hybrid.loading.open_engine import load\n"
        "from hybrid.loading.planning import plan_request, plan_within\n"
        "from hybrid.machine.ram import RamBudget\n"
        "from hybrid.loading.target import choose_target, look_in_profile\n"
        "from hybrid.tune.zero_model import ZeroShape\n"
        "from offload.run.recovery import Replanner\n"
        "from tests.block_models import open_zero_blocks\n"
        "opened = open_zero_blocks(Path(sys.argv[1]) / 'model', ZeroShape(16, 2048, 5632, 32, 512))\n"
        "target = choose_target(RunSettings(cuda='0'), look_in_profile)\n"
        "replanner = Replanner(plan_request(opened, target, {}, RamBudget(440 << 20, asked=True)), plan_within)\n"
        "engine = load(opened, replanner, None, 2)\n"
        "loaded = engine.memory()['ram_peak_bytes']\n"
        "engine.prefill(list(range(40)))\n"
        "engine.decode(1)\n"
        "tiers = [str(placement.tier) for placement in replanner.plan.placements]\n"
        "print(json.dumps([tiers.count('file'), len(tiers), loaded, engine.memory()]))\n"
        "engine.close()\n"
    )
    run = subprocess.run([sys.executable, "-c", code, tmp_path], cwd=REPOSITORY, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    in_files, linears, loaded_bytes, memory = json.loads(run.stdout)
    assert 0 < in_files < linears
    assert loaded_bytes <= memory["ram_peak_bytes"] <= memory["ram_cap_bytes"] == 440 * MIB


def test_tables_of_models_in_blocks_stay_in_their_file(tmp_path: Path) -> None:
    opened = open_zero_blocks(tmp_path / "model", ZeroShape(1, 2048, 5632, 32, 512))
    table_bytes = opened.decoder.graph.initializers["model.embed_tokens.weight"].nbytes
    request = plan_request(opened, choose_target(RunSettings(cuda="0"), look_in_profile), {})
    assert request.other_ram_bytes["other weights"] < 0.6 * table_bytes


def test_peaks_stay_when_memory_is_given_back(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    status = tmp_path / "status"
    monkeypatch.setattr("hybrid.machine.memory._STATUS", status)
    monkeypatch.setattr("hybrid.machine.memory._SAMPLE_S", 0.0)
    watch = MemoryWatch()
    for anonymous, mapped in ((3, 9), (7, 2), (1, 1)):
        status.write_text(f"Name:\tx\nVmHWM:\t11 kB\nVmRSS:\t5 kB\nRssAnon:\t{anonymous} kB\nRssFile:\t{mapped} kB\n")
        watch.sample()
    read = watch.read(Replanner(request([], 0), lambda _: small_plan()))
    assert (read["ram_anonymous_peak_bytes"], read["ram_file_peak_bytes"]) == (7 * 1024, 9 * 1024)
    assert (read["ram_bytes"], read["ram_peak_bytes"]) == (5 * 1024, 11 * 1024)
    assert "ram_cap_bytes" not in read


def test_the_command_keeps_to_the_cap_and_says_so(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "small.toml").write_text("ram = 0.5\n")
    config = str(tmp_path / "small.toml")
    assert cli.main(["run", "--config", config, "--cuda", "0", "--max-tokens", "2", "Once"]) == 0
    last = capsys.readouterr().err.splitlines()[-1]
    assert "of 512 MiB" in last or "of 0.50 GiB" in last
    assert cli.main(["plan", "--model", str(DEMO_MODEL), "--cuda", "0", "--ram", "50MiB"]) == 2
    assert "--ram of 50.00 MiB is too small" in capsys.readouterr().err


def test_a_run_begins_with_what_would_keep_all_in_ram(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """80% of 550 MiB hold no 336 MiB of weights beside the process, nor half of them, but a quarter."""
    monkeypatch.setattr(loading, "read_ram", lambda limits: Ram(GIB, 550 * MIB))
    with closing(open_engine(RunSettings(model=folder, cuda="0"))) as engine:
        assert [advice.change for advice in engine.plan.advice] == ["--host-dtype int4"]
        first, second = opening_lines(engine, "0").splitlines()
        assert first == disk_text(engine.plan)
        assert "--host-dtype int4" in first
        assert second.startswith(engine.decoder.name)
        assert len(without_disk(engine.plan, engine.plan.warnings)) == len(engine.plan.warnings) - 1


def test_the_plan_shows_the_cap_and_what_is_on_disk(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", "--model", str(folder), "--cuda", "0", "--ram", "440MiB", "--verbose"]) == 0
    text = capsys.readouterr().out
    assert "host (on disk)" in text
    budget = next(line for line in text.splitlines() if line.startswith("budget"))
    assert budget.split()[1:] == ["440", "MiB"]
    assert "read from the disk at every step: --ram " in text.splitlines()[0]
    assert text.count("read from the disk at every step") == 1


def test_tables_in_files_are_released_after_every_step_under_a_cap() -> None:
    with closing(open_engine(RunSettings(cuda="0", ram="1"))) as engine:
        dropped: list[None] = []
        engine._executor.drop_mapped_pages = lambda: dropped.append(None)  # type: ignore[method-assign]
        engine.decode(1)
        assert dropped == [None]


def test_the_bytes_told_while_loading_are_those_that_were_announced(folder: Path) -> None:
    told = RecordedProgress()
    settings = RunSettings(model=folder, cuda="0", ram="440MiB")
    with closing(open_engine(settings, told)) as engine:
        assert sum(told.parts) == dict(told.stages)["Loading weights"] == engine.plan.ram_bytes["host weights"] > 0


def test_a_load_that_quantises_says_so(folder: Path) -> None:
    told = RecordedProgress()
    settings = RunSettings(model=folder, cuda="0", host_dtype="int8")
    with closing(open_engine(settings, told)):
        assert sum(told.parts) == dict(told.stages)["Loading weights (quantising to int8)"] > 0


def test_a_load_that_fails_ends_the_threads(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise UsageError("no islands today")

    monkeypatch.setattr(loading, "load_islands", fail)
    with pytest.raises(UsageError, match="no islands today"):
        open_engine(RunSettings(model=folder, cuda="0", ram="440MiB"))
    assert not any(thread.name == "read-ahead" for thread in threading.enumerate())


def test_loading_uses_the_ram_that_can_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "read_ram", lambda limits: Ram(GIB, 60 * MIB))
    with closing(open_engine(RunSettings(cuda="0"))) as engine:
        assert any("of RAM are needed" in warning for warning in engine.plan.warnings)
