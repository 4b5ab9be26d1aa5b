"""Where this user's files are; with the command line, the only place that reads the environment."""

import os
from pathlib import Path


def config_folder() -> Path:
    """`$XDG_CONFIG_HOME/hybrid-run`, or `~/.config/hybrid-run`; it need not be there.

    As the XDG Base Directory Specification has it, a relative path does not count.
    """
    given = Path(os.environ.get("XDG_CONFIG_HOME", ""))
    return (given if given.is_absolute() else Path.home() / ".config") / "hybrid-run"
