"""Packages that are missing, too old, retired, or of different CUDA versions, and the commands that mend it."""

import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from hybrid.doctor.packages import FindVersion, examine_packages, numbers, suitable_extra
from hybrid.doctor.report import Finding, Level
from offload.devices.cuda.nvml import Driver, GpuSeen
from tests.unit.doctor.test_examination import versions

GPU = GpuSeen("Stub T4", 14 << 30, 15 << 30, (7, 5))


def wrong(find_version: FindVersion, extra: str = "cpu", why_not: str = "") -> list[Finding]:
    findings = examine_packages(find_version, extra, lambda: why_not, (3, 13, 1))
    return [finding for finding in findings if finding.level is not Level.OK]


@pytest.mark.parametrize(
    "find_version",
    [
        versions(onnxruntime="1.24.0"),
        versions(onnxruntime_gpu="1.26.0", cupy_cuda12x="14.0.1"),
        versions(onnxruntime_gpu="1.28.1", cupy_cuda13x="14.0.1"),
    ],
)
def test_each_extra_is_fine(find_version: FindVersion) -> None:
    assert wrong(find_version) == []


@pytest.mark.parametrize(
    ("find_version", "said", "mend"),
    [
        (versions(), "onnxruntime is not installed", "pip install 'hybrid-run[cu12]'"),
        (
            versions(onnxruntime="1.30.0", onnxruntime_gpu="1.26.0"),
            "onnxruntime and onnxruntime-gpu are both installed and overwrite each other",
            "pip uninstall -y onnxruntime onnxruntime-gpu && pip install 'hybrid-run[cu12]'",
        ),
        (
            versions(onnxruntime_gpu="1.26.0", cupy_cuda12x="14.0.1", cupy_cuda13x="14.0.1"),
            "cupy-cuda12x and cupy-cuda13x are both installed and overwrite each other",
            "pip uninstall -y cupy-cuda12x cupy-cuda13x && pip install 'hybrid-run[cu12]'",
        ),
        (
            versions(onnxruntime="1.23.2"),
            "onnxruntime 1.23.2: must be 1.24 or newer",
            "pip install --upgrade 'onnxruntime>=1.24'",
        ),
        (
            versions(onnxruntime_gpu="1.27.1", cupy_cuda12x="14.0.1"),
            "cupy-cuda12x is built for CUDA 12 and onnxruntime-gpu 1.27.1 for CUDA 13",
            "pip install 'onnxruntime-gpu>=1.24,<1.27'",
        ),
        (
            versions(onnxruntime_gpu="1.26.0", cupy_cuda13x="14.0.1"),
            "cupy-cuda13x is built for CUDA 13 and onnxruntime-gpu 1.26.0 for CUDA 12",
            "pip install 'onnxruntime-gpu>=1.28'",
        ),
        (
            versions(onnxruntime="1.30.0", pynvml="11.5.3"),
            "the retired package pynvml 11.5.3 is imported in place of nvidia-ml-py",
            "pip uninstall -y pynvml && pip install --force-reinstall --no-deps nvidia-ml-py",
        ),
    ],
)
def test_what_is_wrong_is_named_with_its_mend(find_version: FindVersion, said: str, mend: str) -> None:
    (finding,) = wrong(find_version, "cu12")
    assert (finding.level, finding.text, finding.mend) == (Level.PROBLEM, said, mend)


def test_the_shim_pynvml_is_worth_a_note() -> None:
    (finding,) = wrong(versions(onnxruntime="1.30.0", pynvml="13.0.1"))
    assert finding.level is Level.NOTE


@pytest.mark.parametrize(
    ("name", "number", "mend"),
    [
        ("onnxruntime", "1.30.0", "pip install --force-reinstall --no-deps onnxruntime==1.30.0"),
        ("onnxruntime_gpu", "1.27.0", "pip install 'onnxruntime-gpu>=1.28'"),
    ],
)
def test_an_onnxruntime_that_does_not_load_is_a_problem(name: str, number: str, mend: str) -> None:
    (finding,) = wrong(versions(**{name: number}), why_not="libcudart.so.13: cannot open shared object file")
    assert "cannot be imported: libcudart.so.13" in finding.text
    assert finding.mend == mend


@pytest.mark.parametrize(
    ("python", "level"), [((3, 10, 4), Level.PROBLEM), ((3, 11, 0), Level.OK), ((3, 14, 0), Level.PROBLEM)]
)
def test_python_has_to_be_one_of_three(python: tuple[int, ...], level: Level) -> None:
    assert examine_packages(versions(onnxruntime="1.24.0"), "cpu", str, python)[0].level is level


def test_metadata_on_the_path_is_what_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, number in (("onnxruntime", "1.30.0"), ("onnxruntime_gpu", "1.26.0")):
        folder = tmp_path / f"{name}-{number}.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: {number}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert sys.path[0] == str(tmp_path)
    (finding,) = wrong(version)
    assert finding.text.startswith("onnxruntime and onnxruntime-gpu are both installed")


@pytest.mark.parametrize(
    ("driver", "extra"),
    [
        (None, "cpu"),
        (Driver("580.65.06", (13, 0), ()), "cpu"),
        (Driver("580.65.06", (13, 0), (GPU,)), "cu13"),
        (Driver("535.104.05", (12, 2), (GPU,)), "cu12"),
        (Driver("470.82.01", (11, 4), (GPU,)), "cpu"),
        (Driver(None, (13, 1), (GPU,)), "cu13"),
        (Driver(None, (12, 8), (GPU,)), "cu12"),
        (Driver(None, None, (GPU,)), "cpu"),
    ],
)
def test_the_extra_follows_the_driver(driver: Driver | None, extra: str) -> None:
    assert suitable_extra(driver) == extra


def test_versions_are_compared_by_number() -> None:
    assert numbers("1.9.2") < numbers("1.24") < numbers("1.24.0rc1") < numbers("1.100.0.dev20261121")
    assert numbers("unknown") == ()
