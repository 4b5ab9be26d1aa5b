"""Arrays where they lie: the same rows, columns and shapes in a file as in memory, at any offset."""

import os
from pathlib import Path

import numpy as np
import pytest

from offload.errors import OffloadError
from offload.storage import stored_array
from offload.storage.stored_array import StoredArray
from offload.storage.weight_file import FileRange, WeightFile

ROWS, COLUMNS, HEADER_BYTES = 37, 29, 11


def values() -> np.ndarray:  # type: ignore[type-arg]
    return np.random.default_rng(0).integers(0, 1 << 16, (ROWS, COLUMNS), np.uint16)


@pytest.fixture
def there(tmp_path: Path) -> StoredArray:
    (tmp_path / "weights").write_bytes(bytes(HEADER_BYTES) + values().tobytes())
    where = FileRange(WeightFile.at(tmp_path / "weights"), HEADER_BYTES, 2 * ROWS * COLUMNS)
    return StoredArray.at(where, np.uint16, (ROWS, COLUMNS))


@pytest.mark.parametrize("columns", [(0, COLUMNS), (3, 20), (28, 29)])
@pytest.mark.parametrize("rows", [(0, ROWS), (5, 23), (36, 37)])
@pytest.mark.parametrize("into_a_view", [False, True])
def test_a_part_is_read_and_mapped_from_the_file_as_from_memory(
    there: StoredArray,
    rows: tuple[int, int],
    columns: tuple[int, int],
    into_a_view: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(stored_array, "_BAND_BYTES", 4 * 2 * COLUMNS)
    expected = values()[slice(*rows), slice(*columns)]
    for source in (there, StoredArray.of(values())):
        part = source.rows(*rows).columns(*columns)
        whole = np.zeros((expected.shape[0], expected.shape[1] + 2), np.uint16)
        out = whole[:, 1:-1] if into_a_view else np.zeros(expected.shape, np.uint16)
        part.read_into(out)
        np.testing.assert_array_equal(out, expected)
        assert not whole[:, [0, -1]].any()
        np.testing.assert_array_equal(part.array(), expected)
        assert (part.shape, part.nbytes) == (expected.shape, expected.nbytes)


@pytest.mark.parametrize("columns", [(0, COLUMNS), (3, 20)])
def test_a_part_is_the_same_in_a_copy_of_its_bytes(there: StoredArray, columns: tuple[int, int]) -> None:
    part = there.rows(2, 9).columns(*columns)
    where = part.file_range()
    copy = np.zeros(where.nbytes, np.uint8)
    where.file.read(where.offset, copy)
    np.testing.assert_array_equal(part.over(copy).array(), values()[2:9, slice(*columns)])


@pytest.mark.parametrize("shape", [(), (5,), (2, 3), (2, 3, 4)])
def test_every_number_of_dimensions(shape: tuple[int, ...]) -> None:
    array = np.arange(np.prod(shape, dtype=int), dtype=np.float32).reshape(shape)
    stored = StoredArray.of(array)
    np.testing.assert_array_equal(stored.array(), array)
    np.testing.assert_array_equal(stored.reshape(array.size, 1).array(), array.reshape(-1, 1))


def test_what_is_no_array_is_refused(there: StoredArray) -> None:
    with pytest.raises(ValueError, match="2,146 bytes are no array"):
        StoredArray.at(there.file_range(), np.uint16, (ROWS, COLUMNS + 1))
    with pytest.raises(ValueError, match="must be contiguous"):
        StoredArray.of(values().T)


def test_a_file_that_changed_since_is_an_error(there: StoredArray, tmp_path: Path) -> None:
    os.truncate(tmp_path / "weights", 100)
    out = np.zeros((ROWS, COLUMNS), np.uint16)
    for part, target in ((there, out), (there.columns(1, 4), out[:, :3])):
        with pytest.raises(OffloadError, match="weights: has become shorter"):
            part.read_into(target)
    with pytest.raises(OffloadError, match="weights: has become shorter"):
        there.array()
