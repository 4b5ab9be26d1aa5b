"""The stand-in for the NVIDIA driver's management library, built."""

import shutil
import subprocess
from pathlib import Path

import pytest


def build_stub(folder: Path) -> Path:
    """`folder`, with the stub in it under the driver's name; skips the test without a C compiler."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler (cc) to build tests/nvml_stub.c with")
    source, library = Path(__file__).with_name("nvml_stub.c"), folder / "libnvidia-ml.so.1"
    subprocess.run([compiler, "-shared", "-fPIC", "-Wall", "-Werror", "-o", library, source], check=True)
    return folder
