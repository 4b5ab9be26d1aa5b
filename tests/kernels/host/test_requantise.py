"""Float weights quantised on load: every format, layout, range and remainder, within half a step of what they were."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from offload.host.backend import NumbaBackend
from offload.host.base import HostColumns
from offload.spec.linear import Activations, BlockFormat, Layout, WeightFormat
from offload.storage.stored_weight import StoredWeight
from offload.storage.weight_file import Bytes, WeightFile
from offload.weights.requantise import requantise_into_ram, warm_up
from tests.device.support import in_file
from tests.quantised import exact

INT8, INT4 = WeightFormat.INT8, WeightFormat.INT4
FLOATS = (WeightFormat.FP32, WeightFormat.FP16, WeightFormat.BF16)


def stored(values: npt.NDArray[np.float64], weight_format: WeightFormat, layout: Layout) -> StoredWeight:
    """W[N, K] as a weight, cut off rather than rounded for bf16."""
    turned = np.ascontiguousarray(values.T if layout is Layout.KN else values)
    if weight_format is WeightFormat.BF16:
        cut_off = (turned.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
        return StoredWeight.dense(cut_off, weight_format, layout)
    return StoredWeight.dense(turned.astype(weight_format.storage_dtype), weight_format, layout)


def quantised(
    values: npt.NDArray[np.float64],
    wanted: WeightFormat,
    weight_format: WeightFormat = WeightFormat.FP32,
    layout: Layout = Layout.NK,
    start: int = 0,
    told: list[int] | None = None,
) -> StoredWeight:
    """W[N, K] with its columns from `start` on requantised."""
    return requantised(stored(values, weight_format, layout).columns(start, len(values)), wanted, told)


def requantised(weight: StoredWeight, wanted: WeightFormat, told: list[int] | None = None) -> StoredWeight:
    on_bytes = [].append if told is None else told.append
    return requantise_into_ram({"linear": weight}, {"linear": BlockFormat.made_on_load(wanted)}, on_bytes)["linear"]


@pytest.mark.parametrize("layout", Layout)
@pytest.mark.parametrize("weight_format", FLOATS)
@pytest.mark.parametrize("wanted", [INT8, INT4])
def test_every_weight_is_within_half_a_step(wanted: WeightFormat, weight_format: WeightFormat, layout: Layout) -> None:
    """A step is largest / 127 or / 8, and int4's scale is then fitted, which may move a level 7 by another half."""
    for n, k, start in ((77, 200, 16), (3, 64, 0), (40, 63, 0), (1, 1, 0), (35, 321, 3)):
        values = np.random.default_rng([n, k]).standard_normal((n, k)) * 0.02
        told: list[int] = []
        weight = quantised(values, wanted, weight_format, layout, start, told)
        blocks = np.zeros((n, -(-k // 64) * 64))
        blocks[:, :k] = np.abs(values)
        largest = np.repeat(blocks.reshape(n, -1, 64).max(-1), 64, 1)[:, :k]
        share = 0.52 / 127 if wanted is INT8 else 1.1 / 8
        kept = 2.0**-7 if weight_format is WeightFormat.BF16 else 2.0**-11
        error = np.abs(exact(weight) - values[start:])
        kept_scale = 128 * 2.0**-25  # an fp16 scale is rounded too, the smallest ones by that much of 128 steps
        assert np.all(error <= share * largest[start:] + kept * np.abs(values[start:]) + kept_scale)
        assert sum(told) == (n - start) * k * weight_format.itemsize_bytes


@pytest.mark.parametrize("layout", Layout)
@pytest.mark.parametrize("wanted", [INT8, INT4])
def test_a_mapped_weight_is_read_part_by_part_and_never_through_its_mapping(
    wanted: WeightFormat, layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = np.random.default_rng(0).standard_normal((77, 300))
    expected = quantised(values, wanted, WeightFormat.FP16, layout, start=5)
    weight = stored(values, WeightFormat.FP16, layout)
    stored_there = in_file({"linear": weight}, tmp_path / "weights", header_bytes=101)
    sizes: list[int] = []
    read = WeightFile.read

    def noted(file: WeightFile, offset: int, target: Bytes) -> None:
        sizes.append(target.nbytes)
        read(file, offset, target)

    monkeypatch.setattr(WeightFile, "mapped", None)
    monkeypatch.setattr(WeightFile, "read", noted)
    monkeypatch.setattr("offload.weights.requantise._PART_BYTES", 7000)
    told: list[int] = []
    found = requantised(stored_there["linear"].columns(5, 77), wanted, told)
    for array, other in zip(found.arrays, expected.arrays, strict=True):
        np.testing.assert_array_equal(array.array(), other.array())
    most = 7000 if layout is Layout.NK else 64 * 77 * 2  # whole blocks of K
    assert len(sizes) > 3
    assert max(sizes) <= most
    assert sum(told) == 72 * 300 * 2


def test_the_largest_int4_is_an_end_of_the_scale_and_scales_are_fitted() -> None:
    values = np.random.default_rng(0).standard_normal((200, 64))
    weight = quantised(values, INT4)
    codes = weight.arrays[0].array()
    levels = np.stack([codes & 15, codes >> 4], -1).reshape(200, 64)
    furthest = np.abs(values).argmax(1)
    assert np.all(levels[np.arange(200), furthest] == 0)
    plain = np.take_along_axis(values, furthest[:, None], 1) / -8
    before = (np.clip(np.rint(values / plain), -8, 7) * plain - values) ** 2
    assert ((exact(weight) - values) ** 2).sum() < 0.99 * before.sum()


@pytest.mark.parametrize("wanted", [INT8, INT4])
def test_what_needs_no_rounding_is_exact(wanted: WeightFormat) -> None:
    """Zeros, and whole multiples of a power of two that reach the end of the scale."""
    top = 127 if wanted is INT8 else 8
    values = np.random.default_rng(0).integers(-top, 8 if wanted is INT4 else top + 1, (20, 128)).astype(np.float64)
    values[:, ::64] = -top
    values[3], values[4, :64] = 0, 0
    np.testing.assert_array_equal(exact(quantised(values / 64, wanted)), values / 64)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("wanted", [INT8, INT4])
def test_a_weight_that_is_no_number_stays_none(wanted: WeightFormat, bad: float) -> None:
    values = np.ones((4, 128))
    values[2, 70] = bad
    scales = quantised(values, wanted).arrays[1].array()
    np.testing.assert_array_equal(np.isnan(scales), [[False, False], [False, False], [False, True], [False, False]])


def test_the_result_is_multiplied() -> None:
    warm_up([(WeightFormat.FP32, Layout.NK, INT8)])
    values = np.random.default_rng(0).standard_normal((50, 130))
    weight = quantised(values, INT8, start=8)
    x, y = np.ones((1, 130), np.float32), np.zeros((1, 50), np.float32)
    NumbaBackend(2).group([HostColumns(weight, 8, 50, Activations.FLOAT)]).multiply(x, [y])
    np.testing.assert_allclose(y[0, 8:], values.sum(1)[8:], atol=0.02 * np.abs(values).sum(1).max())
    assert np.all(y[0, :8] == 0)
