"""Weights of Linears: columns without a read, wherever they lie; arrays that fit their storage, and no others."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from offload.spec.linear import BlockFormat, Dense, Layout, Storage, WeightFormat
from offload.storage.stored_array import StoredArray
from offload.storage.stored_weight import StoredWeight
from offload.storage.weight_file import WeightFile
from tests.device.support import in_file
from tests.quantised import exact, random_weight

INT4, FP16 = WeightFormat.INT4, WeightFormat.FP16


@pytest.mark.parametrize("layout", Layout)
def test_columns_of_a_matrix_in_a_file_are_read_by_nobody(
    layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = np.random.default_rng(0).standard_normal((20, 70) if layout is Layout.NK else (70, 20)).astype(np.float16)
    weight = in_file({"w": StoredWeight.dense(values, FP16, layout)}, tmp_path / "weights", header_bytes=3)["w"]
    with monkeypatch.context() as patch:
        patch.setattr(WeightFile, "mapped", None)
        patch.setattr(WeightFile, "read", None)
        part = weight.columns(2, 19).columns(3, 7)
    assert (part.in_features, part.out_features, part.nbytes) == (70, 4, 70 * 4 * 2)
    expected = values[5:9] if layout is Layout.NK else values[:, 5:9]
    out = np.zeros(expected.shape, np.float16)
    part.arrays[0].read_into(out)
    np.testing.assert_array_equal(out, expected)
    np.testing.assert_array_equal(part.arrays[0].array(), expected)
    with pytest.raises(ValueError, match="5:21"):
        weight.columns(5, 21)


def test_columns_of_blocks_are_views() -> None:
    weight = random_weight(20, 70, INT4, 32, zero_points=True)
    part = weight.columns(5, 9)
    assert (part.out_features, part.in_features) == (4, 70)
    assert np.shares_memory(part.arrays[0].array(), weight.arrays[0].array())
    np.testing.assert_array_equal(exact(part), exact(weight)[5:9])
    assert weight.nbytes == 20 * (3 * 16 + 3 * 4 + 2)


@pytest.mark.parametrize(
    "storage",
    [Dense(FP16, Layout.KN), Dense(FP16, Layout.NK), BlockFormat(4, 16, FP16), BlockFormat(8, 32, FP16, True)],
)
def test_a_weight_over_memory_takes_all_bytes_of_its_columns(storage: Storage) -> None:
    memory = np.zeros(20 * storage.column_bytes(70), np.uint8)
    weight = StoredWeight.over(memory, storage, 70, 20)
    for array in weight.arrays:
        array.array().view(np.uint8)[...] += 1
    assert (memory == 1).all()
    assert (weight.out_features, weight.nbytes, weight.in_file) == (20, memory.nbytes, False)


def test_arrays_that_do_not_fit_are_refused() -> None:
    good = random_weight(20, 70, INT4, 32, zero_points=True)
    codes, scales, zeros = (array.array() for array in good.arrays)

    def remade(arrays: Sequence[npt.NDArray[Any]] = (codes, scales, zeros), in_features: int = 70) -> StoredWeight:
        return StoredWeight(good.storage, in_features, tuple(map(StoredArray.of, arrays)))

    changes: dict[str, Any]
    for changes, message in (
        ({"arrays": (codes.astype(np.int8), scales, zeros)}, r"codes must be uint8 \[20, 3, 16\], not int8"),
        ({"arrays": (codes.reshape(20, -1), scales, zeros)}, "codes must be"),
        ({"arrays": (codes[:, :, :15].copy(), scales, zeros)}, "codes must be"),
        ({"in_features": 97}, "codes must be"),
        ({"arrays": (codes, scales[:, :2].copy(), zeros)}, "scales must be"),
        ({"arrays": (codes, scales.astype(np.float64), zeros)}, "scales must be"),
        ({"arrays": (codes, scales, zeros[:, :1].copy())}, "zero points must be"),
        ({"arrays": (codes, scales)}, "has 3 arrays, not 2"),
        ({"arrays": (codes[::2], scales[::2], zeros[::2])}, "contiguous"),
    ):
        with pytest.raises(ValueError, match=message):
            remade(**changes)


def test_matrices_that_do_not_fit_are_refused() -> None:
    matrix = np.zeros((6, 8), np.float16)
    with pytest.raises(ValueError, match="weight must be float16"):
        StoredWeight.dense(matrix.astype(np.float32), FP16, Layout.NK)
    with pytest.raises(ValueError, match="int8 are stored in blocks"):
        StoredWeight.dense(matrix, WeightFormat.INT8, Layout.NK)
    with pytest.raises(ValueError, match="contiguous"):
        StoredWeight.dense(matrix.T, FP16, Layout.KN)
    with pytest.raises(ValueError, match="weight must be"):
        StoredWeight.dense(matrix[:0], FP16, Layout.NK)
    with pytest.raises(ValueError, match="are not block-quantised"):
        _ = StoredWeight.dense(matrix, FP16, Layout.NK).blocks
