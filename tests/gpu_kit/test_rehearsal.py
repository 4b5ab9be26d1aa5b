"""The GPU kit from end to end, without a GPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench.gpu import run

ROOT = Path(__file__).parents[2]
# What a GPU machine may lack.
ABSENT = (
    *("typer", "rich", "tokenizers", "jinja2", "huggingface_hub", "matplotlib", "pynvml", "threadpoolctl"),
    *("prompt_toolkit", "markdown_it"),
)
BARE = f"""
import sys
from importlib.machinery import PathFinder

class BareFinder(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        spec = super().find_spec(name, path, target)
        absent = name in {ABSENT} and spec is not None and "stand_ins" not in spec.origin
        return None if absent else spec

sys.meta_path[sys.meta_path.index(PathFinder)] = BareFinder
"""


@pytest.fixture(scope="module")
def rehearsed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of a rehearsal by a Python that has none of the packages that may be absent."""
    bare = tmp_path_factory.mktemp("bare")
    (bare / "sitecustomize.py").write_text(BARE)
    out, work = tmp_path_factory.mktemp("out") / "gpu", tmp_path_factory.mktemp("work")
    command = [sys.executable, "-m", "bench.gpu", "--device", "simulated", "--out", str(out), "--work", str(work)]
    environment = dict(os.environ, PYTHONPATH=str(bare))
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert list(work.iterdir()) == []  # models are gone
    return out


def test_a_rehearsal_runs_every_part_and_says_that_it_is_modelled(rehearsed: Path) -> None:
    results = json.loads((rehearsed / "gpu.json").read_text())
    assert results["modelled"] is True
    parts = results["parts"]
    assert {name: part["status"] for name, part in parts.items()} == dict.fromkeys(parts, "done")
    assert list(parts) == [part.name for part in run.PARTS]
    found = {name: part["found"] for name, part in parts.items()}
    assert set(found["environment"]["missing"]) >= {"threadpoolctl", "matplotlib"}
    assert found["tests"]["passed"] > 0 == found["tests"]["failed"]
    assert found["rates"]["gpu"]["bus_bytes_per_s"] > 0
    assert all(reading["exact"] for reading in found["kernels"]["readings"])
    assert set(found["overlap"]["step_s"]) == {"together", "resident", "streamed", "host"}
    half, nothing = found["speed"]["runs"]
    assert half["bytes"]["resident"] > 0 == nothing["bytes"]["resident"]
    assert all(run["decode_step_s"] > 0 < run["predicted_decode_step_s"] for run in (half, nothing))
    assert [row["within"] for row in found["cap"]["runs"]] == [True]
    assert json.loads((rehearsed / "timeline.json").read_text())["traceEvents"]
    assert results["pictures"] == "none: matplotlib is not installed"
    text = (rehearsed / "gpu.md").read_text()
    assert "Nothing here was measured on a GPU" in text
    assert all(f"## {part.title} (modelled)" in text for part in run.PARTS)
    assert sorted(path.name for path in rehearsed.iterdir()) == ["gpu.json", "gpu.md", "timeline.json"]


def test_pictures_are_drawn_of_what_there_is(rehearsed: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from bench.gpu.plots import draw

    results = json.loads((rehearsed / "gpu.json").read_text())
    assert draw(results, tmp_path) == "speed.png, kernels.png, overlap.png"
    del results["parts"]["overlap"]["found"]["step_s"]
    assert draw(results, tmp_path) == "speed.png, kernels.png, overlap not drawn (KeyError('step_s'))"


def test_without_a_gpu_there_is_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "bench.gpu", "--out", str(tmp_path / "out"), "--work", str(tmp_path)]
    nowhere = dict(os.environ, CUDA_VISIBLE_DEVICES="")
    done = subprocess.run(command, cwd=ROOT, env=nowhere, capture_output=True, text=True)
    assert done.returncode == 2
    progress, error = done.stderr.splitlines()
    assert progress.startswith("1/8 Environment")
    assert error.startswith("error: ")
    assert error.endswith("--device simulated rehearses without one")
    assert not (tmp_path / "out" / "gpu.json").exists()
