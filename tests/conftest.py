"""The settings and folders that every test starts from."""

import gc
import os
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


@pytest.fixture(autouse=True)
def no_settings_of_the_user(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder for settings: what was measured on this machine must not decide how a test ends."""
    folder = tmp_path_factory.mktemp("config")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(folder))
    return folder
