"""Damaged files of every kind are opened, or refused in one line of ours; see `tools.fuzz`."""

import os
import signal
from pathlib import Path

import pytest

from tools.fuzz import KINDS, Kind, fuzz, try_input
from tools.fuzz_seeds import write_seeds

INPUTS = {"onnx": 40, "settings": 100, "conversation": 100}  # the others: 12


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fuzz")
    (folder / "seeds").mkdir()
    write_seeds(folder / "seeds")
    return folder


@pytest.fixture(autouse=True)
def time_to_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels that are not kept from before are compiled first."""
    monkeypatch.setattr("tools.fuzz.MAX_CPU_S", 100.0)


@pytest.mark.parametrize("name", KINDS)
def test_damaged_files(name: str, work: Path) -> None:
    counts, findings = fuzz(name, 0, range(INPUTS.get(name, 12)), work)
    assert not findings
    assert counts["opened"] + counts["refused"] == INPUTS.get(name, 12)


def test_whole_files_open(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, kind in KINDS.items():
        monkeypatch.setitem(KINDS, name, Kind(kind.seed, kind.files, lambda content, random: content, kind.open))
        assert try_input(name, 0, 0, work) == ("opened", "")


def test_what_is_wrong_is_found(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error of another kind, a death: each is told, and the rest of the batch goes on."""

    def fail(folder: Path, random: object) -> None:
        text = (folder / "settings.toml").read_text()
        if text == "0":
            raise KeyError
        if text == "1":
            os.kill(os.getpid(), signal.SIGKILL)

    kind = Kind("files", ("settings.toml",), lambda content, random: str(random.randrange(3)).encode(), fail)
    monkeypatch.setitem(KINDS, "settings", kind)
    counts, findings = fuzz("settings", 0, range(40), work)
    assert sum(counts.values()) == 40
    assert {finding.what.split()[0].strip("'") for finding in findings} == {"KeyError:", "died"}
    assert counts["opened"]
