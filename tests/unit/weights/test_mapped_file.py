"""Mapped files: values at any offset, one mapping for a file, no descriptor, views that know where they lie."""

import gc
import os
from pathlib import Path

import numpy as np
import pytest

from offload.errors import OffloadError
from offload.weights.mapped_file import drop_pages, file_of, map_array, offset_in_file


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "weights").write_bytes(bytes(range(256)) * 64)
    return tmp_path / "weights"


def mappings(path: Path) -> int:
    return Path("/proc/self/maps").read_text().count(str(path))


@pytest.mark.parametrize("offset_bytes", [0, 4, 4097])
def test_an_array_has_the_values_of_the_file(path: Path, offset_bytes: int) -> None:
    array = map_array(path, np.uint16, offset_bytes, (5, 7))
    expected = np.frombuffer(path.read_bytes(), np.uint16, 35, offset_bytes).reshape(5, 7)
    np.testing.assert_array_equal(array, expected)
    drop_pages(array)
    np.testing.assert_array_equal(array, expected)
    assert not array.flags.writeable


def test_arrays_of_a_file_share_one_mapping_that_goes_with_the_last_of_them(path: Path) -> None:
    before = os.listdir("/proc/self/fd")
    arrays = [map_array(path, np.float32, 4 * n, (8,)) for n in range(50)]
    assert mappings(path) == 1
    assert os.listdir("/proc/self/fd") == before
    kept = arrays[7][2:]
    del arrays
    gc.collect()
    assert mappings(path) == 1
    assert kept.tobytes() == path.read_bytes()[36:60]
    del kept
    gc.collect()
    assert mappings(path) == 0


def test_a_view_knows_its_file_and_where_it_begins(path: Path) -> None:
    array = map_array(path, np.float32, 128, (4, 8))
    view = array.reshape(8, 4)[3:]
    file = file_of(view)
    assert file is not None
    assert (file.path, offset_in_file(view)) == (str(path), 128 + 3 * 16)
    assert file_of(np.array(view)) is None


def test_a_file_that_is_replaced_is_mapped_anew(path: Path) -> None:
    old = map_array(path, np.uint8, 0, (4,))
    (path.parent / "new").write_bytes(b"\7" * path.stat().st_size)
    (path.parent / "new").rename(path)
    assert map_array(path, np.uint8, 0, (4,)).tolist() == [7, 7, 7, 7]
    assert old.tolist() == [0, 1, 2, 3]


def test_a_file_that_ends_before_the_array_or_is_gone_is_an_error(path: Path) -> None:
    with pytest.raises(OffloadError, match="shorter"):
        map_array(path, np.uint8, 256 * 64 - 3, (4,))
    path.unlink()
    with pytest.raises(OffloadError, match="cannot be mapped"):
        map_array(path, np.uint8, 0, (4,))
