"""Keeps compiled kernels in a folder of the user's own, or nowhere.

What is found there is loaded and run, so nobody else may have written it.
"""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path


class NotKept(Exception):
    """No folder to keep compiled code in; says why."""


def code_folder(*names: str) -> Path:
    """The folder `$XDG_CACHE_HOME/hybrid-run/<names>`, made where it is missing, with mode 0700. Raises NotKept."""
    folder = _cache_home() / "hybrid-run"
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _make_private(folder)
        for name in names:
            folder /= name
            _make_private(folder)
        for path in _inside(folder):
            if path.lstat().st_uid != os.geteuid():
                raise NotKept(f"{path} belongs to another user; delete {folder}")
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise NotKept(f"{folder} cannot be used: {error.strerror}") from None
    return folder


def digest_of(parts: Iterable[bytes]) -> str:
    """A name for code that follows from all of these."""
    total = hashlib.sha256()
    for part in parts:
        total.update(hashlib.sha256(part).digest())
    return total.hexdigest()[:32]


def keep_newest(folder: Path, used: Path, count: int) -> None:
    """Delete what has not been used for longest, but for `count`; `used` is being used now."""
    with suppress(OSError):
        os.utime(used)
        for old in sorted(folder.iterdir(), key=_changed_s, reverse=True)[count:]:
            shutil.rmtree(old, ignore_errors=True) if old.is_dir() else old.unlink(missing_ok=True)


def _cache_home() -> Path:
    given = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if given.is_absolute():
        return given
    try:
        return Path.home() / ".cache"
    except RuntimeError:
        raise NotKept("this user has no home folder") from None


def _make_private(folder: Path) -> None:
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.stat()
    if found.st_uid != os.geteuid():
        raise NotKept(f"{folder} belongs to another user; set XDG_CACHE_HOME to a folder of yours")
    if found.st_mode & 0o022:
        raise NotKept(f"{folder} can be written by others; delete it, and it is made anew")
    if found.st_mode & 0o077:
        folder.chmod(0o700)


def _inside(folder: Path) -> Iterator[Path]:
    for parent, folders, files in os.walk(folder):
        yield from (Path(parent, name) for name in (*folders, *files))


def _changed_s(path: Path) -> float:
    return path.lstat().st_mtime
