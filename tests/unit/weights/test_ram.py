"""Host columns in RAM: the same bytes, only those that the host reads, and nothing of a file that shrinks."""

import mmap
from pathlib import Path

import numpy as np
import pytest

from offload.errors import OffloadError
from offload.spec.linear import BlockFormat, Layout, WeightFormat
from offload.storage.stored_weight import StoredWeight
from offload.weights.ram import read_into_ram
from tests.device.support import in_file
from tests.quantised import random_weight

K, N = 48, 64
_HEADER_BYTES = 27  # so that nothing is aligned


def in_files(folder: Path, layout: Layout) -> StoredWeight:
    values = np.random.default_rng(0).standard_normal((K, N) if layout is Layout.KN else (N, K)).astype(np.float16)
    weight = StoredWeight.dense(values, WeightFormat.FP16, layout)
    return in_file({"w": weight}, folder / "weights", _HEADER_BYTES)["w"]


def assert_equal(weight: StoredWeight, other: StoredWeight) -> None:
    assert weight.storage == other.storage
    for one, two in zip(weight.arrays, other.arrays, strict=True):
        np.testing.assert_array_equal(one.array(), two.array())


@pytest.mark.parametrize("layout", Layout)
@pytest.mark.parametrize("start", [0, 40])
def test_columns_are_read(start: int, layout: Layout, tmp_path: Path) -> None:
    columns, told = in_files(tmp_path, layout).columns(start, N), list[int]()
    copy = read_into_ram({"w": columns}, told.append)["w"]
    assert not copy.in_file
    assert_equal(copy, columns)
    assert sum(told) == (N - start) * K * 2


def test_columns_of_blocks_are_read_with_all_their_arrays(tmp_path: Path) -> None:
    weight = random_weight(N, K, WeightFormat.INT4, 16, np.float16, zero_points=True)
    columns, told = in_file({"w": weight}, tmp_path / "weights", _HEADER_BYTES)["w"].columns(5, N), list[int]()
    copy = read_into_ram({"w": columns}, told.append)["w"]
    assert not copy.in_file
    assert_equal(copy, weight.columns(5, N))
    assert sum(told) == (N - 5) * BlockFormat(4, 16, WeightFormat.FP16, zeros=True).column_bytes(K)


def test_what_is_in_memory_stays_where_it_is_if_that_is_ours() -> None:
    weight = StoredWeight.dense(np.zeros((N, K), np.float16), WeightFormat.FP16, Layout.NK)
    message = np.frombuffer(bytes(2 * N * K), np.float16).reshape(N, K)
    parsed = StoredWeight.dense(message, WeightFormat.FP16, Layout.NK)
    found = read_into_ram({"w": weight, "parsed": parsed}, lambda nbytes: None)
    assert found["w"] is weight
    assert_equal(found["parsed"], parsed)
    assert not np.shares_memory(found["parsed"].arrays[0].array(), message)


def test_a_file_that_became_shorter_is_an_error(tmp_path: Path) -> None:
    weight = in_files(tmp_path, Layout.NK)
    with (tmp_path / "weights").open("r+b") as file:
        file.truncate(mmap.PAGESIZE)
    with pytest.raises(OffloadError, match="shorter"):
        read_into_ram({"w": weight}, lambda nbytes: None)


def test_weights_lie_close_together(tmp_path: Path) -> None:
    weights = {}
    for number, start in enumerate((40, 0, 63, 32)):
        (tmp_path / str(number)).mkdir()
        weights[str(number)] = in_files(tmp_path / str(number), Layout.NK).columns(start, N)
    found = read_into_ram(weights, lambda nbytes: None)
    for name, weight in weights.items():
        assert_equal(found[name], weight)
    first, last = (found[name].arrays[0].array().ctypes.data for name in ("0", "3"))
    assert last - first <= (24 + 64 + 1) * K * 2 + 3 * 256
