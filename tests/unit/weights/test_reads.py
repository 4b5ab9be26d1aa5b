"""Jobs on several threads."""

from functools import partial

import numpy as np
import pytest

from offload.errors import OffloadError
from offload.storage.stored_array import StoredArray
from offload.weights.reads import reads, run_parallel


def test_an_array_is_read_part_by_part() -> None:
    array, told = np.arange(37 * 3, dtype=np.uint16).reshape(37, 3), list[int]()
    out = np.zeros_like(array)
    run_parallel(reads(StoredArray.of(array), out, most_bytes=50), told.append)
    np.testing.assert_array_equal(out, array)
    assert sum(told) == array.nbytes
    assert max(told) <= 50


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
