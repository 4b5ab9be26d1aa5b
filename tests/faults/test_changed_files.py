"""Model files that change while a model runs: one line at the next step, and no death on a page that is gone."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from hybrid import load
from hybrid.errors import ModelFileError, OffloadError
from hybrid.loading.opened_model import open_for_run
from hybrid.loading.settings import DEMO_MODEL, RunSettings
from tests.engines import engine_on_cpu

WEIGHTS = "model.safetensors"


def shorten(path: Path) -> None:
    os.truncate(path, 1000)


def empty(path: Path) -> None:
    os.truncate(path, 0)


def overwrite(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(1 << 20)
        file.write(bytes(1 << 20))


def rename(path: Path) -> None:
    path.rename(path.with_suffix(".old"))
    path.write_bytes(b"x")


def remove(path: Path) -> None:
    path.unlink()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(DEMO_MODEL, tmp_path / "model"))


SETTINGS = [{}, {"host_dtype": "int8"}, {"device": "simulated", "cuda": "20MiB"}]


@pytest.mark.parametrize("settings", SETTINGS, ids=["mapped", "quantised", "simulated"])
@pytest.mark.parametrize("change", [shorten, empty, overwrite])
def test_a_file_that_was_written_to_ends_the_text(
    folder: Path, settings: dict[str, str], change: Callable[[Path], None]
) -> None:
    with load(folder, context_tokens=32, **settings) as model:  # type: ignore[arg-type]
        model.engine.prefill([1, 5, 6])
        change(folder / WEIGHTS)
        for _ in range(2):
            with pytest.raises(ModelFileError, match=WEIGHTS):
                model.engine.decode(7)


@pytest.mark.parametrize("change", [shorten, empty, overwrite, rename, remove])
def test_a_file_that_changes_between_opening_and_loading_is_refused(
    folder: Path, change: Callable[[Path], None]
) -> None:
    opened = open_for_run(RunSettings(model=folder))
    change(folder / WEIGHTS)
    with pytest.raises(OffloadError, match=WEIGHTS):
        engine_on_cpu(opened)


@pytest.mark.parametrize("change", [rename, remove])
def test_a_file_that_is_replaced_goes_on_as_it_was(folder: Path, change: Callable[[Path], None]) -> None:
    with load(folder, context_tokens=32) as model:
        model.engine.prefill([1, 5, 6])
        expected = model.engine.decode(7)
        change(folder / WEIGHTS)
        model.engine.trim(3)
        assert (model.engine.decode(7) == expected).all()
