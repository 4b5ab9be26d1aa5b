"""The whole examination: it always comes to an end, in lines that say what is wrong and what mends it."""

import json
import os
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from hybrid import doctor
from hybrid.doctor import Level, Report, examine, report_text
from hybrid.doctor.packages import FindVersion
from hybrid.doctor.report import Finding, Section, note, ok, problem
from hybrid.loading.settings import DEMO_MODEL
from offload.devices.cuda import nvml
from offload.errors import DeviceUnavailableError
from tests.hf_models import tiny_config

TITLES = ["System", "Memory", "Packages", "CPU kernels", "Disk", "GPU", "CUDA"]


def versions(**found: str) -> FindVersion:
    """A version finder; hyphens are written as underscores."""
    names = {name.replace("_", "-"): version for name, version in found.items()}

    def find_version(name: str) -> str:
        if name not in names:
            raise PackageNotFoundError(name)
        return names[name]

    return find_version


@pytest.fixture
def no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    def driver() -> nvml.Driver:
        raise DeviceUnavailableError("no NVIDIA driver found")

    monkeypatch.setattr(nvml, "driver", driver)


def texts(report: Report, title: str, level: Level | None = None) -> list[str]:
    section = next(section for section in report.sections if section.title.startswith(title))
    return [finding.text for finding in section.findings if level in (None, finding.level)]


@pytest.mark.usefixtures("no_driver")
def test_a_machine_without_a_gpu_has_every_section_and_no_problem_with_cuda(tmp_path: Path) -> None:
    report = examine(None, {"HOME": str(tmp_path)}, versions(onnxruntime="1.24.0"))
    assert [section.title.split(":")[0] for section in report.sections] == TITLES
    assert texts(report, "GPU", Level.NOTE) == ["no NVIDIA driver found; everything runs on the CPU"]
    assert texts(report, "CUDA", Level.NOTE) == ["CuPy is not installed: only a GPU needs it"]
    assert texts(report, "Disk")[0].startswith(f"model cache {tmp_path}/.cache/huggingface/hub: empty")


@pytest.mark.usefixtures("no_driver")
def test_a_machine_that_tells_nothing_is_still_reported(tmp_path: Path) -> None:
    report = examine(None, {}, versions(onnxruntime="1.24.0"), root=tmp_path)
    assert texts(report, "Memory", Level.NOTE) == ["RAM: the kernel does not tell how much there is"]
    assert "does not tell its features" in texts(report, "System", Level.NOTE)[0]


@pytest.mark.usefixtures("no_driver")
def test_a_part_that_fails_takes_no_other_part_with_it(tmp_path: Path) -> None:
    def find_version(name: str) -> str:
        if name == "scipy":
            raise RuntimeError("metadata\nis broken")
        return versions(onnxruntime="1.24.0")(name)

    report = examine(None, {"HOME": str(tmp_path)}, find_version)
    assert texts(report, "Packages") == ["could not be examined: RuntimeError: metadata is broken"]
    assert len(report.sections) == len(TITLES)


@pytest.mark.usefixtures("no_driver")
def test_cuda_is_started_where_cupy_is_installed(tmp_path: Path) -> None:
    report = examine(None, {"HOME": str(tmp_path)}, versions(onnxruntime_gpu="1.26.0", cupy_cuda12x="14.0.1"))
    # It runs where there is a GPU and CuPy, and says why not anywhere else.
    assert any(text.startswith(("CUDA runs on ", "CUDA does not run: ")) for text in texts(report, "CUDA"))


@pytest.mark.usefixtures("no_driver")
def test_the_demo_model_fits() -> None:
    report = examine(DEMO_MODEL, dict(os.environ))
    found = texts(report, "Model")
    assert found[0] == "demo: llama, 6 layers, a vocabulary of 1024"
    assert "fp16: 43 Linears, 4.45 MiB" in found
    assert any(text.startswith("context: made for 512 tokens; 512 unless") for text in found)
    assert any(text.startswith("with --cuda 0 it takes about ") and text.endswith("it fits") for text in found)
    assert any(text.startswith("with all that can be offloaded in VRAM") for text in found)


@pytest.mark.usefixtures("no_driver")
@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        (None, "", "no such folder"),
        ("config.json", "{", "not JSON"),
        ("config.json", json.dumps(tiny_config("mamba")), "mamba"),
        ("model.safetensors", "", "no config.json"),
        ("pytorch_model.bin", "", "must be safetensors or an ONNX file"),
    ],
)
def test_a_broken_model_is_one_line(tmp_path: Path, name: str | None, content: str, said: str) -> None:
    folder = tmp_path / "model"
    if name is not None:
        folder.mkdir()
        (folder / name).write_text(content)
    (text,) = texts(examine(folder, {}, versions(onnxruntime="1.24.0")), "Model", Level.PROBLEM)
    assert said in text
    assert "\n" not in text


@pytest.mark.usefixtures("no_driver")
def test_a_config_alone_can_be_planned(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(tiny_config()))
    report = examine(tmp_path, {}, versions(onnxruntime="1.24.0"))
    assert "only a config, no weights: it can be planned, not run" in texts(report, "Model", Level.NOTE)
    assert texts(report, "Model", Level.PROBLEM) == []


@pytest.fixture
def report() -> Report:
    findings = (ok("all\nis well"), note("mind " + "this " * 40, "do that"), problem("broken\x1b[31m", "mend " * 40))
    return Report((Section("Part", findings), Section("Empty", ())))


def test_text_wraps_lines_but_never_commands(report: Report) -> None:
    lines = report_text(report, 60).splitlines()
    assert lines[:2] == ["Part", "  all is well"]
    assert lines[2].startswith("  note: mind this this")
    assert f"    mend: {'mend ' * 40}" in lines
    assert "  PROBLEM: broken?[31m" in lines
    assert all(len(line) <= 60 for line in lines if "mend:" not in line)
    assert lines[-1] == "1 problem."


def test_json_is_the_report(report: Report) -> None:
    data = json.loads(json.dumps(report.to_json()))
    assert data["problems"] == 1
    assert [section["title"] for section in data["sections"]] == ["Part", "Empty"]
    assert data["sections"][0]["findings"][0] == {"level": "ok", "text": "all is well", "mend": ""}


def test_no_problems_are_counted_in_words() -> None:
    assert report_text(Report(())) == "No problems found.\n"
    assert report_text(Report((Section("A", (problem("a"), problem("b"))),))).endswith("\n2 problems.\n")


def test_the_public_names_are_these() -> None:
    assert sorted(doctor.__all__) == ["Finding", "Level", "Report", "Section", "examine", "report_text"]
    assert isinstance(ok("x"), Finding)
    assert callable(examine)
