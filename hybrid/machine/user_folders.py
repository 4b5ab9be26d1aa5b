"""Finds this user's files; with the command line, the only place that reads the environment."""

import os
from pathlib import Path


def loader_environment() -> dict[str, str]:
    """Give the environment that a Python of this installation needs to start, and nothing else of it: no secrets."""
    return {name: value for name, value in os.environ.items() if name in ("LD_LIBRARY_PATH", "TZ")}


def config_folder() -> Path:
    """`$XDG_CONFIG_HOME/hybrid-run`, or `~/.config/hybrid-run`; it need not be there.

    As the XDG Base Directory Specification has it, a relative path does not count.
    """
    given = Path(os.environ.get("XDG_CONFIG_HOME", ""))
    return (given if given.is_absolute() else Path.home() / ".config") / "hybrid-run"
