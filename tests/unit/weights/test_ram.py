"""Host columns in RAM: the same bytes, only those that the host reads, and nothing of a file that shrinks."""

import mmap
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from offload.errors import OffloadError
from offload.plan.plan import LinearPlacement
from offload.spec.linear import ColumnRange, Layout, LinearSpec, WeightFormat
from offload.spec.stored_weight import StoredWeight
from offload.weights.mapped_file import file_of, map_array
from offload.weights.ram import read_into_ram

K, N = 48, 64
_HEADER_BYTES = 26  # so that nothing is aligned


def placement(layout: Layout, on_device: int) -> LinearPlacement:
    linear = LinearSpec("linear", K, N, WeightFormat.FP16, layout, 2 * K * N, "kind", "0", "group")
    ranges = ColumnRange(0, on_device), ColumnRange(on_device, on_device), ColumnRange(on_device, N)
    return LinearPlacement(linear, *ranges, reason="", host_format=linear.format)


def mapped(folder: Path, layout: Layout) -> StoredWeight:
    values = np.random.default_rng(0).standard_normal((K, N) if layout is Layout.KN else (N, K)).astype(np.float16)
    (folder / "weights").write_bytes(bytes(_HEADER_BYTES) + values.tobytes())
    array = map_array(folder / "weights", np.float16, _HEADER_BYTES, values.shape)
    return StoredWeight.dense(array, WeightFormat.FP16, layout)


@pytest.mark.parametrize("layout", Layout)
def test_a_host_weight_is_read_whole(layout: Layout, tmp_path: Path) -> None:
    weight, told = mapped(tmp_path, layout), list[int]()
    copy = read_into_ram([placement(layout, 0)], {"linear": weight}, told.append)["linear"]
    assert file_of(copy.arrays[0]) is None
    np.testing.assert_array_equal(copy.arrays[0], weight.arrays[0])
    assert sum(told) == weight.nbytes


def test_only_the_rows_of_host_columns_are_read(tmp_path: Path) -> None:
    weight, told = mapped(tmp_path, Layout.NK), list[int]()
    copy = read_into_ram([placement(Layout.NK, 40)], {"linear": weight}, told.append)["linear"]
    np.testing.assert_array_equal(copy.arrays[0][40:], weight.arrays[0][40:])
    assert sum(told) == 24 * K * 2


@pytest.mark.parametrize(("layout", "on_device"), [(Layout.KN, 16), (Layout.NK, N), (Layout.KN, N)])
def test_what_cannot_be_moved_or_is_not_read_stays_where_it_is(layout: Layout, on_device: int, tmp_path: Path) -> None:
    weight = mapped(tmp_path, layout)
    kept = read_into_ram([placement(layout, on_device)], {"linear": weight}, lambda nbytes: None)["linear"]
    assert kept is weight


def test_a_file_that_became_shorter_is_an_error(tmp_path: Path) -> None:
    weight = mapped(tmp_path, Layout.NK)
    with (tmp_path / "weights").open("r+b") as file:
        file.truncate(mmap.PAGESIZE)
    with pytest.raises(OffloadError, match="shorter"):
        read_into_ram([placement(Layout.NK, 0)], {"linear": weight}, lambda nbytes: None)


def test_several_weights_lie_close_together_each_with_its_own_host_rows(tmp_path: Path) -> None:
    placements, weights = [], {}
    for number, on_device in enumerate((40, 0, 63, 32)):
        (tmp_path / str(number)).mkdir()
        weight = mapped(tmp_path / str(number), Layout.NK)
        base = placement(Layout.NK, on_device)
        placements.append(replace(base, linear=replace(base.linear, name=str(number))))
        weights[str(number)] = weight
    read = read_into_ram(placements, weights, lambda nbytes: None)
    for moved in placements:
        name, start = moved.linear.name, moved.host.start
        np.testing.assert_array_equal(read[name].arrays[0][start:], weights[name].arrays[0][start:])
    first, last = read["0"].arrays[0][40:], read["3"].arrays[0][32:]
    apart = last.__array_interface__["data"][0] - first.__array_interface__["data"][0]
    host_rows = sum(len(p.host) for p in placements)
    assert apart + last.nbytes <= host_rows * K * 2 + 4 * 256  # what is not read takes no room between them
