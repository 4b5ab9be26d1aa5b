"""Findings about a model: weights that stay on the CPU, and whether it fits."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from hybrid.doctor.model import examine_model
from hybrid.doctor.report import Finding, Level
from hybrid.loading.resolve import resolve_model
from hybrid.loading.settings import DEMO_MODEL
from hybrid.machine.ram import Ram
from offload.devices.cuda.nvml import Driver, GpuSeen
from offload.spec.units import GIB, MIB
from tests.hf_models import tiny_config
from tests.hub_stub import StubHub, connect, tiny_files

ROOMY = Ram(16 * GIB, 8 * GIB)


def driver(*free_bytes: int | None) -> Driver:
    return Driver("580.65.06", (13, 0), tuple(GpuSeen("Stub T4", free, 15 * GIB, (7, 5)) for free in free_bytes))


def finding(findings: list[Finding], start: str) -> Finding:
    return next(finding for finding in findings if finding.text.startswith(start))


@pytest.mark.parametrize(
    ("ram", "level", "said"),
    [
        (ROOMY, Level.OK, "it fits"),
        (Ram(16 * GIB, MIB), Level.NOTE, "and 1.00 MiB are available: close other programs first"),
        (
            Ram(2 * MIB, MIB),
            Level.PROBLEM,
            "and there are 2.00 MiB: take a smaller model, or this one with --host-dtype",
        ),
        (None, Level.NOTE, "of RAM"),
    ],
)
def test_it_fits_ram_or_not(ram: Ram | None, level: Level, said: str) -> None:
    found = finding(examine_model(DEMO_MODEL, ram, None, {}), "with --cuda 0 it takes about ")
    assert found.level is level
    assert said in found.text


@pytest.mark.parametrize(
    ("gpus", "level", "said"),
    [
        (driver(100 * MIB, 14 * GIB), Level.OK, "it fits"),
        (
            driver(100 * MIB),
            Level.NOTE,
            "and 100 MiB are free: a part of it stays in RAM, see `hybrid plan --model ",
        ),
        (driver(None), Level.OK, "of it"),
        (None, Level.OK, "of it"),
    ],
)
def test_it_fits_vram_or_not(gpus: Driver | None, level: Level, said: str) -> None:
    found = finding(examine_model(DEMO_MODEL, ROOMY, gpus, {}), "with all that can be offloaded in VRAM it takes")
    assert found.level is level
    assert said in found.text


def test_a_format_that_the_gpu_refuses_stays_on_the_cpu() -> None:
    found = examine_model(DEMO_MODEL, ROOMY, driver(GIB), {"fp16": "no kernel for it"})
    assert finding(found, "43 Linears, 4.45 MiB cannot be offloaded: no kernel for it").level is Level.NOTE
    assert not any("in VRAM" in each.text for each in found)


def test_a_model_without_its_tokenizer_does_not_run(tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        shutil.copy(DEMO_MODEL / name, tmp_path)
    problems = [each for each in examine_model(tmp_path, ROOMY, None, {}) if each.level is Level.PROBLEM]
    assert len(problems) == 1
    assert "tokenizer" in problems[0].text


def test_the_context_is_what_the_model_was_made_for(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(tiny_config()))
    assert finding(examine_model(tmp_path, ROOMY, None, {}), "context: made for 64 tokens; 64 unless --context")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StubHub]:
    with StubHub("org/tiny", tiny_files(tmp_path / "made")) as hub:
        connect(monkeypatch, hub, tmp_path / "home")
        yield hub


def test_a_name_on_the_hub_is_what_has_been_downloaded_and_no_request_is_made(hub: StubHub) -> None:
    name = Path("org/tiny")
    mend = 'hybrid run --model org/tiny "Hello"'

    def examined() -> list[Finding]:
        hub.requests.clear()
        found = examine_model(name, ROOMY, None, {})
        assert not hub.requests
        return found

    (absent,) = examined()
    assert (absent.level, absent.mend) == (Level.PROBLEM, mend)
    resolve_model("org/tiny", config_only=True)  # as `hybrid plan` does
    assert finding(examined(), "only a config, no weights").mend == mend
    resolve_model("org/tiny")
    found = examined()
    assert finding(found, "org/tiny: llama")
    assert not any(each.text.startswith("only a config") for each in found)


def test_a_folder_that_is_absent_cannot_be_downloaded(tmp_path: Path) -> None:
    (found,) = examine_model(tmp_path / "absent", ROOMY, None, {})
    assert (found.level, found.mend) == (Level.PROBLEM, "")
