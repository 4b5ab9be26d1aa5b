"""Weights block-quantised to int8 and int4 against float64: blocks, zero points, ranges, addresses, numbers of rows."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from offload.host.backend import NumbaBackend
from offload.host.base import HostColumns
from offload.host.quantised import QuantisedKind
from offload.spec.linear import BLOCKS, Activations, BlockFormat, Layout, WeightFormat
from offload.storage.stored_array import StoredArray
from offload.storage.stored_weight import StoredWeight
from tests.device.support import in_file
from tests.quantised import exact, random_weight, seen

INT8, INT4 = WeightFormat.INT8, WeightFormat.INT4
UNTOUCHED = np.float32(-777)
REPOSITORY = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def backend() -> NumbaBackend:
    return NumbaBackend(threads=2)


def inputs(rows: int, k: int) -> npt.NDArray[np.float32]:
    return np.random.default_rng([rows, k]).standard_normal((rows, k), np.float32)


def columns_of(weight: StoredWeight, activations: Activations, start: int = 0, stop: int | None = None) -> HostColumns:
    stop = weight.out_features if stop is None else stop
    return HostColumns(weight.columns(start, stop), start, weight.out_features, activations)


def multiply(backend: NumbaBackend, x: npt.NDArray[np.float32], *columns: HostColumns) -> list[npt.NDArray[np.float32]]:
    outputs = [np.full((len(x), one.out_features), UNTOUCHED) for one in columns]
    backend.group(columns).multiply(x, outputs)
    return outputs


def check(x: npt.NDArray[np.float32], columns: HostColumns, y: npt.NDArray[np.float32]) -> None:
    """`y` is x @ W within its range of columns, and as it was outside it.

    Products of a block are exact in int8. What is left are roundings of 2**-24: a few for each block, one for each
    of K where x is a float, all relative to the sum of magnitudes.
    """
    weight = columns.weight
    factors, w = seen(x, weight.blocks.block, columns.activations), exact(weight).T
    blocks = weight.blocks.blocks(weight.in_features)
    count = weight.in_features if columns.activations is Activations.FLOAT else blocks
    bound = (count + 8) * 2.0**-24 * (np.abs(factors) @ np.abs(w))
    used = slice(columns.start, columns.stop)
    assert np.all(np.abs(y[:, used] - factors @ w) <= bound)
    assert np.all(y[:, : columns.start] == UNTOUCHED)
    assert np.all(y[:, columns.stop :] == UNTOUCHED)


@pytest.mark.parametrize("activations", Activations)
@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("weight_format", [INT8, INT4])
def test_multiplies_any_shape(
    backend: NumbaBackend, weight_format: WeightFormat, block: int, activations: Activations
) -> None:
    """Whole and partial blocks, batches of blocks, slices of K and tiles of columns; fp32 or fp16 scales."""
    dtype = np.float16 if block in (32, 64) else np.float32
    for n, k, start, stop in (
        (70, 3 * block, 5, 68),
        (33, 17 * block, 0, 33),
        (9, 50, 0, 9),
        (1, 1, 0, 1),
        (40, 5000, 3, 37),
    ):
        for zero_points in (False, True):
            weight = random_weight(n, k, weight_format, block, dtype, zero_points)
            columns = columns_of(weight, activations, start, stop)
            for rows in (1, 2, 5):
                x = inputs(rows, k)
                check(x, columns, multiply(backend, x, columns)[0])


@pytest.mark.parametrize("activations", Activations)
@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 6, 7, 8, 9, 128])
def test_any_number_of_rows(backend: NumbaBackend, rows: int, activations: Activations) -> None:
    columns = columns_of(random_weight(100, 1000, INT4, 64, np.float16, True), activations, 1, 99)
    x = inputs(rows, 1000)
    check(x, columns, multiply(backend, x, columns)[0])


@pytest.mark.parametrize("activations", Activations)
@pytest.mark.parametrize("weight_format", [INT8, INT4])
@pytest.mark.parametrize("rows", [1, 6])
def test_mapped_weights_at_odd_addresses(
    backend: NumbaBackend, rows: int, weight_format: WeightFormat, activations: Activations, tmp_path: Path
) -> None:
    weight = random_weight(45, 200, weight_format, 32, np.float32, True)
    mapped = in_file({"w": weight}, tmp_path / "weights", header_bytes=1)["w"]
    assert mapped.arrays[1].array().ctypes.data % 4
    columns = columns_of(mapped, activations, 3, 44)
    x = inputs(rows, 200)
    check(x, columns, multiply(backend, x, columns)[0])


def test_products_of_a_block_are_exact(backend: NumbaBackend) -> None:
    """The largest bytes there are: sums of 16-bit products would overflow, fp32 just holds the block's."""
    arrays = np.full((3, 1, 256), 255, np.uint8), np.ones((3, 1), np.float32), np.zeros((3, 1), np.uint8)
    storage = BlockFormat(8, 256, WeightFormat.FP32, zeros=True)
    weight = StoredWeight(storage, 256, tuple(map(StoredArray.of, arrays)))
    x = np.full((2, 256), 127, np.float32)
    x[1] = -127
    for rows in (x[:1], x):
        (y,) = multiply(backend, rows, columns_of(weight, Activations.INT8))
        np.testing.assert_array_equal(y, np.repeat(rows[:, :1] * (255 * 256), 3, 1))


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("activations", Activations)
def test_hostile_activations(backend: NumbaBackend, rows: int, activations: Activations) -> None:
    weight = random_weight(20, 96, INT4, 32)
    columns = columns_of(weight, activations)
    zero = np.zeros((rows, 96), np.float32)
    np.testing.assert_array_equal(multiply(backend, zero, columns)[0], 0)
    for scale in (1e30, 1e-30):
        x = inputs(rows, 96) * np.float32(scale)
        y = multiply(backend, x, columns)[0]
        expected = seen(x, 32, activations) @ exact(weight).T
        assert np.abs(y - expected).max() <= 1e-5 * np.abs(expected).max() + 1e-34
    for tiny in (1e-37, 1e-40):  # a scale whose inverse would be infinite
        assert np.abs(multiply(backend, inputs(rows, 96) * np.float32(tiny), columns)[0]).max() < 1e-34
    for bad in (np.nan, np.inf):
        x = inputs(rows, 96)
        x[-1, 40] = bad
        y = multiply(backend, x, columns)[0]
        assert not np.isfinite(y[-1]).any()
        assert np.isfinite(y[:-1]).all()


def test_a_scale_that_is_nan_or_infinite_reaches_its_column(backend: NumbaBackend) -> None:
    weight = random_weight(40, 64, INT8, 32)
    scales = weight.arrays[1].array()
    scales[7, 1], scales[39, 0] = np.nan, np.inf
    for rows in (1, 4):
        y = multiply(backend, inputs(rows, 64), columns_of(weight, Activations.INT8))[0]
        bad = np.flatnonzero(~np.isfinite(y).all(0))
        np.testing.assert_array_equal(bad, [7, 39])


@pytest.mark.parametrize("rows", [1, 3, 140])
def test_groups_of_several_kinds(backend: NumbaBackend, rows: int) -> None:
    """One launch where blocks and activations are equal; a float Linear and other blocks beside them work too."""
    k = 160
    floats = np.random.default_rng(0).standard_normal((50, k)).astype(np.float32)
    group = [
        columns_of(random_weight(70, k, INT4, 32), Activations.INT8, 2, 64),
        HostColumns(StoredWeight.dense(floats, WeightFormat.FP32, Layout.NK), 0, 50),
        columns_of(random_weight(33, k, INT4, 32, np.float16, True), Activations.INT8),
        columns_of(random_weight(20, k, INT8, 64), Activations.INT8),
        columns_of(random_weight(20, k, INT8, 64), Activations.FLOAT, 4, 5),
    ]
    x = inputs(rows, k)
    outputs = multiply(backend, x, *group)
    for columns, y in zip(group, outputs, strict=True):
        if isinstance(columns.weight.storage, BlockFormat):
            check(x, columns, y)
    np.testing.assert_allclose(outputs[1], x @ floats.T, rtol=1e-4, atol=1e-4)


def test_groups_take_turns_with_changing_arrays(backend: NumbaBackend) -> None:
    """x of many rows is made ready in memory that groups share."""
    some = [
        columns_of(random_weight(90, 64, INT4, 64), Activations.INT8),
        columns_of(random_weight(40, 320, INT8, 16), Activations.FLOAT),
    ]
    groups = [(columns, backend.group([columns])) for columns in some]
    for rows in (1, 1, 4, 1, 130, 2, 130):
        for columns, group in groups:
            y = np.full((rows, columns.out_features), UNTOUCHED)
            for x in (inputs(rows, columns.in_features), inputs(rows, columns.in_features) * np.float32(2)):
                for _ in range(2):  # the same arrays again
                    y[:] = 0
                    group.multiply(x, [y])
                    check(x, columns, y)


@pytest.mark.parametrize("threads", [1, 3, 7])
def test_any_number_of_threads_gives_the_same(backend: NumbaBackend, threads: int) -> None:
    columns = columns_of(random_weight(333, 150, INT4, 32), Activations.INT8, 2, 331)
    other = NumbaBackend(threads)
    for rows in (1, 5, 130):
        x = inputs(rows, 150)
        np.testing.assert_array_equal(multiply(other, x, columns)[0], multiply(backend, x, columns)[0])


def test_refuses_what_does_not_fit(backend: NumbaBackend) -> None:
    good = random_weight(20, 70, INT4, 32, zero_points=True)
    with pytest.raises(ValueError, match="1:21"):
        backend.group([HostColumns(good, 1, 20, Activations.INT8)])
    with pytest.raises(ValueError, match="equal numbers"):
        backend.group(
            [columns_of(good, Activations.INT8), columns_of(random_weight(20, 71, INT4, 32), Activations.INT8)]
        )
    group, x, y = backend.group([columns_of(good, Activations.INT8)]), inputs(2, 70), np.zeros((2, 20), np.float32)
    for bad_x, bad_outputs in ((x[:, :60], [y]), (x, []), (x, [y[:, :5]]), (x.astype(np.float64), [y])):
        with pytest.raises(ValueError, match=r"must be|need as many"):
            group.multiply(bad_x, bad_outputs)


def test_warm_up_compiles_ahead(backend: NumbaBackend) -> None:
    backend.warm_up_quantised([QuantisedKind(4, 32, WeightFormat.FP32, activations) for activations in Activations])


# Compiled for another processor: with and without AVX-512, neither with dot products of bytes.
SCRIPT = """
import numpy as np
from offload.host.backend import NumbaBackend
from offload.host.kernels import quant_ir as host_quant_ir
from tests.kernels.host.test_quantised import *
assert host_quant_ir.LANES == {lanes}
backend = NumbaBackend(2)
test_products_of_a_block_are_exact(backend)
for weight_format, block in ((INT8, 64), (INT4, 16)):
    test_multiplies_any_shape(backend, weight_format, block, Activations.INT8)
test_multiplies_any_shape(backend, INT4, 32, Activations.FLOAT)
"""
AVX2 = "+sse2,+ssse3,+sse4.1,+sse4.2,+avx,+avx2,+fma,+f16c,+popcnt,+bmi,+bmi2"


@pytest.mark.parametrize(
    ("lanes", "features"), [(8, AVX2), (16, f"{AVX2},+avx512f,+avx512bw,+avx512vl,+avx512dq")], ids=["avx2", "avx512"]
)
def test_processors_without_dot_products_of_bytes(lanes: int, features: str) -> None:
    from llvmlite import binding

    host = binding.get_host_cpu_features()
    if not all(host.get(feature[1:]) for feature in features.split(",")):
        pytest.skip("this processor is older, or of another kind")
    subprocess.run(
        [sys.executable, "-W", "error", "-c", SCRIPT.format(lanes=lanes)],
        env={**os.environ, "NUMBA_CPU_NAME": "x86-64", "NUMBA_CPU_FEATURES": features},  # numba caches by these too
        cwd=REPOSITORY,
        check=True,
    )
