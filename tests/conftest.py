"""The settings and folders that every test starts from."""

import gc
import os
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest
from hypothesis import settings

# What chance finds once is kept as an example; a build server must not fail by chance.
settings.register_profile("ci", derandomize=True, deadline=None, database=None)
if os.environ.get("CI"):
    settings.load_profile("ci")


def pytest_collection_finish() -> None:
    """Freeze what is imported by now, so no collection of garbage has to look at it; recovery collects often."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def settings_folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Folders for settings, none of which is there yet; pytest's own numbered ones cost milliseconds each."""
    root = tmp_path_factory.mktemp("config")
    return (root / str(number) for number in count())


@pytest.fixture(autouse=True)
def no_settings_of_the_user(settings_folders: Iterator[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty folder for settings: what was measured on this machine must not decide how a test ends."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(next(settings_folders)))
