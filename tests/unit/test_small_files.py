"""Names of things that are no file of settings: refused in one clause each, without a wait."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from hybrid.chat.saved import load
from hybrid.cli.settings_file import read_settings
from hybrid.errors import UsageError
from hybrid.machine.profiles import find_profile
from offload.errors import OffloadError, ProfileError
from offload.small_files import UnreadableFileError, read_small, read_small_json

READERS: dict[str, tuple[Callable[[Path], object], type[OffloadError]]] = {
    "a machine profile": (lambda path: find_profile(str(path)), ProfileError),
    "settings": (lambda path: read_settings(path, {}), UsageError),
    "a conversation": (load, UsageError),
}


def _circle(path: Path) -> None:
    path.symlink_to(path)


KINDS: dict[str, Callable[[Path], object]] = {
    "a pipe": os.mkfifo,
    "a folder": Path.mkdir,
    "a circle of links": _circle,
    "a device without end": lambda path: path.symlink_to("/dev/zero"),
    "nothing": lambda path: None,
    "a file that is too large": lambda path: os.truncate(os.open(path, os.O_CREAT | os.O_WRONLY), 1 << 27),
    "bytes that are no text": lambda path: path.write_bytes(b"\xff\xfe"),
    "nesting": lambda path: path.write_text("[" * 200_000),
    "a table without end": lambda path: path.write_text("a = " + "[" * 100_000),
    "a number without end": lambda path: path.write_text("9" * 10_000),
    "a setting without end": lambda path: path.write_text("a = " + "9" * 10_000),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_such_file(kind: str, reader: str, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    KINDS[kind](path)
    read, error = READERS[reader]
    with pytest.raises(error) as caught:
        read(path)
    assert str(caught.value).isprintable()
    assert caught.value.__cause__ is None


def test_a_file_is_read_up_to_its_bound(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"a": 1}')
    assert read_small_json(tmp_path / "a.json", 8) == {"a": 1}
    with pytest.raises(UnreadableFileError):
        read_small(tmp_path / "a.json", 7)
    with pytest.raises(UnreadableFileError):
        read_small(Path("a\0b"), 7)
