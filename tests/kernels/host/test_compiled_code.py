"""Folders of compiled code: the user's own, private, and no larger than they have to be."""

import os
from pathlib import Path

import numba
import pytest

from offload.compiled_code import NotKept, code_folder, digest_of, keep_newest
from offload.host.kernels import cache


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


def test_folders_are_made_for_the_user_alone(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = os.umask(0)
    try:
        folder = code_folder("cpu", "state")
    finally:
        os.umask(before)
    assert folder == home / "hybrid-run" / "cpu" / "state"
    assert {path.stat().st_mode & 0o777 for path in (folder, *folder.parents[:2])} == {0o700}
    assert list(folder.iterdir()) == []
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(home / "me"))
    assert code_folder("cuda") == home / "me" / ".cache" / "hybrid-run" / "cuda"


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o720, 0o1777])
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_folders_that_others_can_write_are_not_used(mode: int, depth: int, home: Path) -> None:
    code_folder("cpu", "state")
    open_to_all = home.joinpath(*("hybrid-run", "cpu", "state")[:depth])
    open_to_all.chmod(mode)
    with pytest.raises(NotKept, match="can be written by others"):
        code_folder("cpu", "state")


def test_folders_of_others_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    code_folder("cpu")
    user = os.geteuid()
    with monkeypatch.context() as another:
        another.setattr(os, "geteuid", lambda: user + 1)
        with pytest.raises(NotKept, match="belongs to another user"):
            code_folder("cpu")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_files_of_others_are_not_used() -> None:
    folder = code_folder("cpu")
    (folder / "kernels_1").mkdir()
    (folder / "kernels_1" / "a.nbi").touch()
    os.chown(folder / "kernels_1" / "a.nbi", 12345, -1)
    with pytest.raises(NotKept, match="belongs to another user"):
        code_folder("cpu")


@pytest.mark.parametrize("name", ["hybrid-run", "hybrid-run/cpu"])
def test_what_is_no_folder(name: str, home: Path) -> None:
    (home / name).parent.mkdir(mode=0o700, exist_ok=True)
    (home / name).touch(0o600)
    with pytest.raises(NotKept):
        code_folder("cpu")


def test_a_digest_follows_from_each_part() -> None:
    assert len({digest_of(parts) for parts in ([b"ab"], [b"a", b"b"], [b"b", b"a"], [], [b""])}) == 5


def test_old_states_are_deleted(home: Path) -> None:
    folder = code_folder("cpu")
    for number in range(5):
        (folder / str(number)).mkdir()
        (folder / str(number) / "code").touch()
        os.utime(folder / str(number), (number, number))
    keep_newest(folder, folder / "0", 3)  # used now
    assert sorted(path.name for path in folder.iterdir()) == ["0", "3", "4"]


def test_numbas_own_setting_is_put_back(home: Path) -> None:
    before = numba.config.CACHE_DIR
    cache._folder.cache_clear()
    try:
        with cache.kernels_kept() as kept:
            assert kept
            assert numba.config.CACHE_DIR.startswith(str(home / "hybrid-run" / "cpu"))
        assert before == numba.config.CACHE_DIR
        assert cache.why_not_kept() == ""
        cache._folder.cache_clear()
        (home / "hybrid-run").chmod(0o777)
        with cache.kernels_kept() as kept:
            assert not kept
        assert "can be written by others" in cache.why_not_kept()
    finally:
        cache._folder.cache_clear()
