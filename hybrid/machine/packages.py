"""Packages that must not be installed together, and those without which nothing runs."""

from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version

from hybrid.errors import InstallationError

# Each of these fills the same folder as its rival: the one installed last half-overwrites the other.
_RIVALS = (("onnxruntime", "onnxruntime-gpu"), ("cupy-cuda12x", "cupy-cuda13x"))


def check_packages(find_version: Callable[[str], str] = version) -> None:
    """Raise InstallationError, with the commands that mend it, for packages that are missing or in conflict."""

    def installed(name: str) -> bool:
        try:
            return bool(find_version(name))
        except PackageNotFoundError:
            return False

    for one, other in _RIVALS:
        if installed(one) and installed(other):
            raise InstallationError(
                f"{one} and {other} are both installed and overwrite each other; choose one of the extras cpu, cu12 "
                f"and cu13: pip uninstall -y {one} {other} && pip install 'hybrid-run[cpu]' (or cu12, cu13)"
            )
    if not any(installed(name) for name in ("onnxruntime", "onnxruntime-gpu")):
        raise InstallationError(
            "onnxruntime is not installed: pip install 'hybrid-run[cpu]' (or cu12, cu13 with a GPU)"
        )
