"""numba's cache of our kernels, in a folder of the user's own instead of beside the installed files.

Compiled kernels are kept for one state of the sources, of numba and of what is under it; the CPU is numba's to look at.
"""

import functools
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import llvmlite
import numba
from numba.core import config

from offload.compiled_code import NotKept, code_folder, digest_of, keep_newest

_MOST_STATES = 8
_lock = threading.RLock()  # numba's setting is one for the process


@contextmanager
def kernels_kept() -> Iterator[bool]:
    """Have numba keep what is compiled meanwhile in our folder. Gives whether there is one."""
    folder, _ = _folder()
    if folder is None:
        yield False
        return
    with _lock:
        before, config.CACHE_DIR = config.CACHE_DIR, str(folder)
        try:
            yield True
        finally:
            config.CACHE_DIR = before


def why_not_kept() -> str:
    """Why kernels are compiled anew in every process, or nothing."""
    return _folder()[1]


@functools.cache
def _folder() -> tuple[Path | None, str]:
    versions = f"{numba.__version__} {llvmlite.__version__} {sys.implementation.cache_tag}".encode()
    sources = [path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py"))]
    try:
        folder = code_folder("cpu", digest_of([versions, *sources]))
    except NotKept as reason:
        return None, str(reason)
    keep_newest(folder.parent, folder, _MOST_STATES)
    return folder, ""
