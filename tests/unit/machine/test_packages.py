"""Extras that overwrite each other are caught and explained."""

from collections.abc import Callable
from importlib.metadata import PackageNotFoundError

import pytest

from hybrid.errors import InstallationError
from hybrid.machine.packages import check_packages


def _only(*names: str) -> Callable[[str], str]:
    def find_version(name: str) -> str:
        if name not in names:
            raise PackageNotFoundError(name)
        return "1.0"

    return find_version


@pytest.mark.parametrize("names", [("onnxruntime",), ("onnxruntime-gpu", "cupy-cuda12x")])
def test_one_extra_is_fine(names: tuple[str, ...]) -> None:
    check_packages(_only(*names))


@pytest.mark.parametrize(
    "names", [("onnxruntime", "onnxruntime-gpu"), ("onnxruntime-gpu", "cupy-cuda12x", "cupy-cuda13x")]
)
def test_two_extras_together_are_explained(names: tuple[str, ...]) -> None:
    with pytest.raises(InstallationError, match="pip uninstall -y") as caught:
        check_packages(_only(*names))
    assert "\n" not in str(caught.value)


def test_no_onnxruntime_is_explained() -> None:
    with pytest.raises(InstallationError, match=r"hybrid-run\[cpu\]"):
        check_packages(_only())
