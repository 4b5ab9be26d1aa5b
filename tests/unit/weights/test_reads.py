"""Parts of mapped weights, read past their mapping; jobs on several threads."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest

from offload.errors import OffloadError
from offload.spec.arrays import HostArray
from offload.weights import reads
from offload.weights.mapped_file import map_array
from offload.weights.reads import byte_parts, copy_part, run_parallel

ROWS, COLUMNS, HEADER_BYTES = 37, 29, 11


@pytest.fixture
def weight(tmp_path: Path) -> HostArray:
    values = np.random.default_rng(0).integers(0, 1 << 16, (ROWS, COLUMNS), np.uint16)
    (tmp_path / "weights").write_bytes(bytes(HEADER_BYTES) + values.tobytes())
    return map_array(tmp_path / "weights", np.uint16, HEADER_BYTES, (ROWS, COLUMNS))


@pytest.mark.parametrize("columns", [slice(0, COLUMNS), slice(3, 20), slice(28, 29)])
@pytest.mark.parametrize("rows", [slice(0, ROWS), slice(5, 23)])
@pytest.mark.parametrize("into_a_view", [False, True])
def test_a_part_is_copied_from_the_file_as_from_memory(
    weight: np.ndarray,  # type: ignore[type-arg]
    rows: slice,
    columns: slice,
    into_a_view: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(reads, "_BAND_BYTES", 4 * 2 * COLUMNS)
    shape = (rows.stop - rows.start, columns.stop - columns.start)
    for source in (weight, np.array(weight)):
        whole = np.zeros((shape[0], shape[1] + 2), np.uint16)
        out = whole[:, 1:-1] if into_a_view else np.zeros(shape, np.uint16)
        copy_part(source, rows, columns, out)
        np.testing.assert_array_equal(out, np.asarray(weight)[rows, columns])
        assert not whole[:, [0, -1]].any()


def test_a_file_that_is_gone_or_shorter_is_an_error(weight: np.ndarray, tmp_path: Path) -> None:  # type: ignore[type-arg]
    out = np.empty((ROWS, COLUMNS), np.uint16)
    with (tmp_path / "weights").open("r+b") as file:
        file.truncate(100)
    with pytest.raises(OffloadError, match="weights: has become shorter"):
        copy_part(weight, slice(0, ROWS), slice(0, COLUMNS), out)
    (tmp_path / "weights").unlink()
    with pytest.raises(OffloadError, match="weights: cannot be read: No such file"):
        copy_part(weight, slice(0, ROWS), slice(0, COLUMNS), out)


def test_every_job_is_done_and_told_in_order() -> None:
    done, told = set[int](), list[int]()
    run_parallel([(partial(done.add, number), number) for number in range(50)], told.append)
    assert done == set(told) == set(range(50))
    assert told == sorted(told)


def test_an_error_in_a_job_comes_out() -> None:
    def fail() -> None:
        raise OffloadError("the disk is gone")

    with pytest.raises(OffloadError, match="the disk is gone"):
        run_parallel([(lambda: None, 1), (fail, 1), (lambda: None, 1)])


def test_parts_tile_the_range() -> None:
    assert list(byte_parts(3, 11, 4)) == [(3, 7), (7, 11)]
    assert list(byte_parts(3, 3, 4)) == []
