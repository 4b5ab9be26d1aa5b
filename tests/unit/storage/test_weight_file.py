"""Files of weights: one mapping for each, no descriptor; what was replaced, written to or cut off is refused."""

import gc
import os
from pathlib import Path

import numpy as np
import pytest

from offload.errors import OffloadError
from offload.storage.weight_file import FileRange, WeightFile


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "weights").write_bytes(bytes(range(256)) * 64)
    return tmp_path / "weights"


def mappings(path: Path) -> int:
    return Path("/proc/self/maps").read_text().count(str(path))


@pytest.mark.parametrize("offset", [0, 4, 4097])
def test_bytes_are_the_same_mapped_and_read(path: Path, offset: int) -> None:
    file, here = WeightFile.at(path), slice(offset, offset + 70)
    expected = path.read_bytes()[here]
    for _ in range(2):
        file.drop_pages(offset, 70)  # at first, of nothing
        assert file.mapped[here].tobytes() == expected
    assert not file.mapped.flags.writeable
    read = np.zeros(70, np.uint8)
    file.read(offset, read)
    assert read.tobytes() == expected


def test_arrays_over_a_file_share_one_mapping_that_goes_with_the_last_of_them(path: Path) -> None:
    before = os.listdir("/proc/self/fd")
    files = [WeightFile.at(path) for _ in range(50)]
    arrays = [file.mapped[4 * n : 4 * n + 32] for n, file in enumerate(files)]
    assert mappings(path) == 1
    assert os.listdir("/proc/self/fd") == before
    kept = arrays[7][8:]
    del arrays, files
    gc.collect()
    assert mappings(path) == 1
    assert kept.tobytes() == path.read_bytes()[36:60]
    del kept
    gc.collect()
    assert mappings(path) == 0


def test_a_file_that_is_replaced_is_another_one(path: Path) -> None:
    old, late = WeightFile.at(path), WeightFile(path, WeightFile.at(path).identity)
    assert old.mapped[:4].tolist() == [0, 1, 2, 3]
    (path.parent / "new").write_bytes(b"\7" * path.stat().st_size)
    (path.parent / "new").rename(path)
    assert WeightFile.at(path).mapped[:4].tolist() == [7, 7, 7, 7]
    assert old.mapped[:4].tolist() == [0, 1, 2, 3]
    for look in (lambda: late.mapped, lambda: late.read(0, np.zeros(4, np.uint8))):
        with pytest.raises(OffloadError, match="weights: was replaced by another file"):
            look()


def test_a_file_that_is_written_to_shorter_or_gone_is_an_error(path: Path) -> None:
    file = WeightFile.at(path)
    os.utime(path, ns=(1, 1))
    with pytest.raises(OffloadError, match="weights: was written to"):
        file.read(0, np.zeros(4, np.uint8))
    os.truncate(path, 100)
    for look in (lambda: file.mapped, lambda: file.read(0, np.zeros(4, np.uint8))):
        with pytest.raises(OffloadError, match="weights: has become shorter, 100 of 16,384 bytes"):
            look()
    path.unlink()
    with pytest.raises(OffloadError, match="weights: cannot be mapped: No such file"):
        _ = file.mapped
    with pytest.raises(OffloadError, match="weights: cannot be read: No such file"):
        file.read(0, np.zeros(4, np.uint8))
    with pytest.raises(OSError, match="No such file"):
        WeightFile.at(path)


@pytest.mark.parametrize(("offset", "nbytes"), [(16_384 - 3, 4), (-1, 4), (4, -1), (1 << 62, 1)])
def test_a_range_that_the_file_does_not_have_is_refused(path: Path, offset: int, nbytes: int) -> None:
    with pytest.raises(OffloadError, match=r"weights: bytes .* are not in 16,384 bytes"):
        FileRange(WeightFile.at(path), offset, nbytes)
