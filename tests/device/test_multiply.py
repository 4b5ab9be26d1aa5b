"""Multiplications, on every device: float weights and blocks, few rows and many."""

from typing import Any

import numpy as np
import pytest

from offload.devices.base import DeviceArray
from offload.plan.scratch import MAX_ROWS
from offload.spec.linear import Activations, BlockFormat, Layout, WeightFormat
from offload.storage.stored_array import StoredArray
from offload.storage.stored_weight import StoredWeight
from tests.device.support import (
    int8_blocks,
    multiply,
    random_stored,
    to_float64,
    upload,
    upload_blocks,
)
from tests.quantised import exact, random_weight

FLOATS = [WeightFormat.FP32, WeightFormat.FP16, WeightFormat.BF16]
INT4, INT8 = WeightFormat.INT4, WeightFormat.INT8
# Sums in fp32, in any order, of exact products: 2**-24 of the sum of magnitudes for each of a few hundred additions.
TOLERANCE = 1e-5
ROUNDED = 2**-10  # x and W each rounded to fp16


@pytest.fixture
def stream(device: Any) -> Any:
    return device.stream("test")


def check(y: Any, x: Any, w: Any, tolerance: float = TOLERANCE) -> None:
    """`y` is x @ w but for so much of the sums of magnitudes; w is float64 [K, N]."""
    assert y.dtype == np.float32
    exact_y, magnitude = x.astype(np.float64) @ w, np.abs(x).astype(np.float64) @ np.abs(w)
    assert np.all(np.abs(y - exact_y) <= tolerance * magnitude)  # false for NaN as well


def skip_unless_supported(device: Any, weight_format: WeightFormat) -> None:
    if reason := device.supports(weight_format):
        pytest.skip(reason)


@pytest.mark.parametrize("weight_format", FLOATS)
@pytest.mark.parametrize("layout", list(Layout))
@pytest.mark.parametrize("shape", [(1, 64, 48), (3, 33, 17), (8, 600, 24), (9, 40, 24), (17, 128, 256)])  # M, K, N
def test_float_weights(
    device: Any, stream: Any, weight_format: WeightFormat, layout: Layout, shape: tuple[int, int, int]
) -> None:
    """x is of numbers that the weights' format has, so it makes no difference whether it is rounded."""
    skip_unless_supported(device, weight_format)
    rows, inner, columns = shape
    rng = np.random.default_rng(1)
    x = to_float64(random_stored(rng, (rows, inner), weight_format), weight_format)
    w = random_stored(rng, (inner, columns) if layout is Layout.KN else (columns, inner), weight_format)
    memory = device.allocate(256 << 10)
    w_array = upload(device, stream, memory, 1024, w, weight_format)
    y = multiply(device, stream, x, w_array, layout)
    wide = to_float64(w, weight_format)
    check(y, x, wide if layout is Layout.KN else wide.T)
    device.free(memory)


@pytest.mark.parametrize("weight_format", FLOATS)
def test_some_columns(device: Any, stream: Any, weight_format: WeightFormat) -> None:
    """Columns [5, 21) of a matrix that is stored NK are its rows: an offset is all it takes."""
    skip_unless_supported(device, weight_format)
    rng = np.random.default_rng(2)
    x = to_float64(random_stored(rng, (4, 40), weight_format), weight_format)
    w = random_stored(rng, (32, 40), weight_format)
    memory = device.allocate(1 << 16)
    whole = upload(device, stream, memory, 0, w, weight_format)
    part = DeviceArray(memory, 5 * 40 * weight_format.itemsize_bytes, (16, 40), whole.format)
    check(multiply(device, stream, x, part), x, to_float64(w, weight_format)[5:21].T)


@pytest.mark.parametrize("weight_format", [WeightFormat.FP16, WeightFormat.BF16])
@pytest.mark.parametrize("rows", [1, MAX_ROWS])
def test_few_rows_are_not_rounded(device: Any, stream: Any, weight_format: WeightFormat, rows: int) -> None:
    skip_unless_supported(device, weight_format)
    if device.input_format(weight_format) is not WeightFormat.FP32:
        pytest.skip("x is stored as the weights are")
    rng = np.random.default_rng(3)
    x, w = rng.standard_normal((rows, 64)).astype(np.float32), random_stored(rng, (24, 64), weight_format)
    w_array = upload(device, stream, device.allocate(1 << 13), 0, w, weight_format)
    check(multiply(device, stream, x, w_array), x, to_float64(w, weight_format).T)


@pytest.mark.parametrize("activations", list(Activations))
@pytest.mark.parametrize(
    ("weight_format", "block", "scales", "zeros"),
    [
        (INT8, 16, np.float32, False),
        (INT8, 32, np.float32, True),
        (INT8, 64, np.float16, False),
        (INT8, 256, np.float16, True),
        (INT4, 16, np.float16, True),
        (INT4, 32, np.float32, False),
        (INT4, 64, np.float16, False),
        (INT4, 128, np.float32, True),
    ],
)
def test_weights_in_blocks(
    device: Any,
    stream: Any,
    activations: Activations,
    weight_format: WeightFormat,
    block: int,
    scales: Any,
    zeros: bool,
) -> None:
    """37 columns of 301 features: odd numbers of columns, of blocks, and of features in the last block."""
    skip_unless_supported(device, weight_format)
    weight = random_weight(37, 301, weight_format, block, scales, zeros)
    memory = device.allocate(64 << 10)
    w = upload_blocks(device, stream, memory, 512, weight)
    for rows in (1, 3, MAX_ROWS, MAX_ROWS + 1, 33):
        x = np.random.default_rng(rows).standard_normal((rows, 301)).astype(np.float32)
        seen = int8_blocks(x, block) if activations is Activations.INT8 and rows <= MAX_ROWS else x
        y = multiply(device, stream, x, w, activations=activations)
        check(y, seen, exact(weight).T, TOLERANCE if rows <= MAX_ROWS else ROUNDED)
    device.free(memory)


@pytest.mark.parametrize("rows", [1, MAX_ROWS, MAX_ROWS + 1])
def test_a_few_rows_are_rounded_to_int8_as_asked(device: Any, stream: Any, rows: int) -> None:
    """One big number in the block leaves nothing of the small ones, unless x is taken as it is."""
    skip_unless_supported(device, INT8)
    arrays = np.full((1, 1, 16), 129, np.uint8), np.ones((1, 1), np.float32)
    ones = StoredWeight(BlockFormat(8, 16, WeightFormat.FP32), 16, tuple(map(StoredArray.of, arrays)))
    w = upload_blocks(device, stream, device.allocate(256), 0, ones)
    x = np.full((rows, 16), 0.25, np.float32)
    x[:, 3] = 127
    for activations in Activations:
        rounds = activations is Activations.INT8 and rows <= MAX_ROWS
        assert np.all(multiply(device, stream, x, w, activations=activations) == (127 if rounds else 127 + 15 / 4))


@pytest.mark.parametrize("rows", [1, MAX_ROWS + 1])
@pytest.mark.parametrize("activations", list(Activations))
def test_nan_and_infinity_are_not_lost(device: Any, stream: Any, rows: int, activations: Activations) -> None:
    skip_unless_supported(device, INT4)
    w = upload_blocks(device, stream, device.allocate(4096), 0, random_weight(5, 64, INT4, 32, np.float16))
    for value in (np.nan, np.inf):
        x = np.ones((rows, 64), np.float32)
        x[0, 7] = value
        y = multiply(device, stream, x, w, activations=activations)
        assert not np.isfinite(y[0]).any()
        assert np.isfinite(y[1:]).all()


@pytest.mark.parametrize("weight_format", [INT8, INT4])
def test_what_a_device_multiplies_is_what_it_supports(device: Any, weight_format: WeightFormat) -> None:
    fp32 = WeightFormat.FP32
    assert (device.supports(weight_format) == "") == (device.input_format(WeightFormat.FP16) is fp32)


@pytest.mark.parametrize("weight_format", [WeightFormat.FP16, WeightFormat.BF16, INT8, INT4])
def test_rows_that_would_not_fit_fp16_are_neither_infinite_nor_lost(
    device: Any, stream: Any, weight_format: WeightFormat
) -> None:
    """Those of models in bf16 may be beyond 65504; the rows beside them stay what they are alone, to the bit."""
    skip_unless_supported(device, weight_format)
    if device.input_format(WeightFormat.FP16) is not WeightFormat.FP32:
        pytest.skip("x is stored as the weights are")
    rng = np.random.default_rng(4)
    memory = device.allocate(64 << 10)
    if weight_format.is_float:
        stored = random_stored(rng, (37, 301), weight_format)
        w, wide = upload(device, stream, memory, 0, stored, weight_format), to_float64(stored, weight_format).T
    else:
        weight = random_weight(37, 301, weight_format, 32, np.float16)
        w, wide = upload_blocks(device, stream, memory, 0, weight), exact(weight).T
    x = rng.standard_normal((MAX_ROWS + 9, 301)).astype(np.float32)
    alone = multiply(device, stream, x, w)
    magnitudes = [65504.0, 1e5, 3e9, 1e30, 1e-6, 1e-12, 1e-30, 0.0]
    for row, magnitude in enumerate(magnitudes):
        x[2 * row] *= magnitude / np.abs(x[2 * row]).max()
    y = multiply(device, stream, x, w)
    rounded = 2**-7 if weight_format is WeightFormat.BF16 else ROUNDED
    check(y, x, wide, rounded)
    np.testing.assert_array_equal(y[1::2], alone[1::2])
