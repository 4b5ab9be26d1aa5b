"""The CPU kernels against float64: every format, layout, range and number of rows."""

import os
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from offload.host.backend import NumbaBackend
from offload.host.base import HostColumns
from offload.host.cast import cast_activations
from offload.host.kernels import compiled, loops, tiles
from offload.spec.linear import Dense, Layout, WeightFormat
from offload.storage.stored_array import StoredArray
from offload.storage.stored_weight import StoredWeight
from tests.device.support import in_file

Array = npt.NDArray[Any]

FORMATS = (WeightFormat.FP32, WeightFormat.FP16, WeightFormat.BF16)
UNTOUCHED = np.float32(-777)
REPOSITORY = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def backend() -> NumbaBackend:
    return NumbaBackend(threads=2)


def stored(values: Array, weight_format: WeightFormat, layout: Layout) -> StoredWeight:
    """`values` as a weight, cut off rather than rounded for bf16."""
    if weight_format is WeightFormat.BF16:
        cut_off = (values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
        return StoredWeight.dense(cut_off, weight_format, layout)
    return StoredWeight.dense(values.astype(weight_format.storage_dtype), weight_format, layout)


def exact(weight: StoredWeight) -> Array:
    """The weight as float64 [K, N]."""
    matrix = weight.arrays[0].array()
    if weight.storage.format is WeightFormat.BF16:
        matrix = (matrix.astype(np.uint32) << 16).view(np.float32)
    return (matrix.T if weight.storage.layout is Layout.NK else matrix).astype(np.float64)


def make(
    k: int, n: int, weight_format: WeightFormat, layout: Layout, start: int = 0, stop: int | None = None
) -> HostColumns:
    random = np.random.default_rng([k, n])
    values = random.standard_normal((n, k) if layout is Layout.NK else (k, n))
    return HostColumns(stored(values, weight_format, layout).columns(start, n if stop is None else stop), start, n)


def activations(rows: int, k: int) -> npt.NDArray[np.float32]:
    return np.random.default_rng([rows, k]).standard_normal((rows, k), np.float32)


def check(x: Array, columns: HostColumns, y: Array) -> None:
    """`y` is x @ W within its range of columns, and as it was outside it.

    Weights and activations enter exactly, so all error is fp32 accumulation: in any order at most K roundings
    of 2**-24, each relative to the sum of magnitudes, and one for the product.
    """
    weight, used = exact(columns.weight), slice(columns.start, columns.stop)
    bound = (x.shape[1] + 1) * 2.0**-24 * (np.abs(x.astype(np.float64)) @ np.abs(weight))
    error = np.abs(y[:, used] - x.astype(np.float64) @ weight)
    assert np.all(error <= bound)
    assert np.all(y[:, : columns.start] == UNTOUCHED)
    assert np.all(y[:, columns.stop :] == UNTOUCHED)


def multiply(backend: NumbaBackend, x: Array, *columns: HostColumns) -> list[Array]:
    outputs = [np.full((len(x), one.out_features), UNTOUCHED) for one in columns]
    backend.group(columns).multiply(x, outputs)
    return outputs


@pytest.mark.parametrize("layout", list(Layout))
@pytest.mark.parametrize("weight_format", FORMATS)
@pytest.mark.parametrize("rows", [1, 2, 5, 9, 13, 64, 129])
def test_multiplies_any_shape(backend: NumbaBackend, rows: int, weight_format: WeightFormat, layout: Layout) -> None:
    for k, n, start, stop in (
        (1, 1, 0, 1),
        (64, 96, 0, 96),
        (37, 211, 13, 190),
        (1031, 70, 1, 70),
        (5, 300, 7, 9),
    ):
        columns = make(k, n, weight_format, layout, start, stop)
        x = activations(rows, k)
        (y,) = multiply(backend, x, columns)
        check(x, columns, y)


@pytest.mark.parametrize("weight_format", FORMATS)
def test_no_sum_of_a_long_row_depends_on_where_columns_are_divided(
    backend: NumbaBackend, weight_format: WeightFormat
) -> None:
    k = loops.LONG_BYTES // 4
    whole = make(k, 70, weight_format, Layout.NK, 3, 61)
    x = activations(1, k)
    (y,) = multiply(backend, x, whole)
    check(x, whole, y)
    cuts = pairwise((3, 20, 21, 61))
    parts = [HostColumns(whole.weight.columns(start - 3, stop - 3), start, 70) for start, stop in cuts]
    for part, alone in zip(parts, multiply(backend, x, *parts), strict=True):
        used = slice(part.start, part.stop)
        np.testing.assert_array_equal(alone[:, used], y[:, used])


@pytest.mark.parametrize("layout", list(Layout))
def test_several_panels_and_blocks_of_rows(backend: NumbaBackend, layout: Layout) -> None:
    columns = make(3 * tiles.SLICE + 5, 300, WeightFormat.BF16, layout, 33, 290)
    x = activations(tiles.BLOCK_ROWS + 9, columns.in_features)
    (y,) = multiply(backend, x, columns)
    check(x, columns, y)


def test_no_linears(backend: NumbaBackend) -> None:
    assert multiply(backend, activations(3, 40)) == []


def test_no_rows(backend: NumbaBackend) -> None:
    columns = make(8, 8, WeightFormat.FP16, Layout.NK)
    backend.group([columns]).multiply(np.empty((0, 8), np.float32), [np.empty((0, 8), np.float32)])


@pytest.mark.parametrize("layout", list(Layout))
@pytest.mark.parametrize("weight_format", FORMATS)
@pytest.mark.parametrize("rows", [1, 5, 129])
def test_weights_at_odd_addresses(
    backend: NumbaBackend, rows: int, weight_format: WeightFormat, layout: Layout, tmp_path: Path
) -> None:
    whole, shift = make(77, 75, weight_format, layout).weight, 2 if weight_format is WeightFormat.FP32 else 1
    mapped = in_file({"w": whole}, tmp_path / "weights", shift)["w"]
    assert mapped.arrays[0].array().ctypes.data % mapped.arrays[0].dtype.itemsize
    x, columns = activations(rows, 77), HostColumns(mapped.columns(3, 70), 3, 75)
    (y,) = multiply(backend, x, columns)
    check(x, columns, y)


@pytest.mark.parametrize("rows", [1, 4, 140])
@pytest.mark.parametrize("layout", list(Layout))
def test_rows_of_a_wider_matrix(backend: NumbaBackend, layout: Layout, rows: int) -> None:
    (matrix,) = make(96, 75, WeightFormat.FP16, layout).weight.arrays
    wide = np.zeros((matrix.shape[0], 200), np.float16)
    inner = slice(50, 50 + matrix.shape[1])
    wide[:, inner] = matrix.array()
    weight = StoredWeight(
        Dense(WeightFormat.FP16, layout), 96, (StoredArray.of(wide).columns(inner.start, inner.stop),)
    )
    x, columns = activations(rows, 96), HostColumns(weight, 5, 80)
    (y,) = multiply(backend, x, columns)
    check(x, columns, y)


@pytest.mark.parametrize("layout", list(Layout))
@pytest.mark.parametrize("weight_format", FORMATS)
@pytest.mark.parametrize("rows", [1, 6, 129])
def test_nan_and_infinity_reach_the_output(
    backend: NumbaBackend, rows: int, weight_format: WeightFormat, layout: Layout
) -> None:
    values = np.ones((50, 53))
    values[7, 2], values[49, 33], values[0, 52], values[11, 40] = np.nan, np.inf, -np.inf, np.inf
    values[12, 40] = -np.inf
    weight = stored(np.ascontiguousarray(values.T if layout is Layout.NK else values), weight_format, layout)
    x = np.ones((rows, 50), np.float32)
    x[-1, 3] = np.nan
    (y,) = multiply(backend, x, HostColumns(weight, 0, 53))
    assert np.all(np.isnan(y[-1]))
    for row in y[:-1]:
        special = {2: np.nan, 33: np.inf, 52: -np.inf, 40: np.nan}
        expected = np.array([special.get(column, 50.0) for column in range(53)], np.float32)
        np.testing.assert_array_equal(row, expected)


@pytest.mark.parametrize("rows", [1, 3, 20, 140])
def test_one_launch_for_a_group_equals_one_each(backend: NumbaBackend, rows: int) -> None:
    group = [
        make(130, 256, WeightFormat.FP16, Layout.NK, 16, 240),
        make(130, 40, WeightFormat.BF16, Layout.KN, 0, 33),
        make(130, 64, WeightFormat.FP32, Layout.NK),
        make(130, 99, WeightFormat.FP32, Layout.KN, 98, 99),
    ]
    x = activations(rows, 130)
    for columns, y in zip(group, multiply(backend, x, *group), strict=True):
        check(x, columns, y)
    same = group[:1] + group[:1]  # one kind of weight, so that both take the same path
    alone = multiply(backend, x, same[0])[0]
    for y in multiply(backend, x, *same):
        np.testing.assert_array_equal(y, alone)


def test_two_groups_take_turns_with_changing_arrays(backend: NumbaBackend) -> None:
    first = make(64, 100, WeightFormat.FP16, Layout.NK, 10, 90)
    second = make(33, 50, WeightFormat.BF16, Layout.KN)
    groups = [(columns, backend.group([columns])) for columns in (first, second)]
    for rows in (1, 1, 4, 1, 130, 2, 130):
        for columns, group in groups:
            k = columns.in_features
            y = np.full((rows, columns.out_features), UNTOUCHED)
            for x in (activations(rows, k), activations(rows, k) * np.float32(2)):
                for _ in range(2):  # the same arrays again
                    y[:, columns.start : columns.stop] = 0
                    group.multiply(x, [y])
                    check(x, columns, y)


@pytest.mark.parametrize("threads", [1, 3, 7])
def test_any_number_of_threads_gives_the_same(threads: int) -> None:
    for rows in (1, 5, 130):
        columns = make(70, 333, WeightFormat.BF16, Layout.NK, 2, 331)
        x = activations(rows, 70)
        (y,) = multiply(NumbaBackend(threads), x, columns)
        check(x, columns, y)


@pytest.mark.parametrize("layout", Layout)
def test_nothing_is_compiled_after_a_warm_up(
    backend: NumbaBackend, layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted: list[tuple[Any, ...]] = []
    address = compiled.kernel_address

    def noted(*kernel: Any) -> int:
        wanted.append(kernel)
        return address(*kernel)

    monkeypatch.setattr(compiled, "kernel_address", noted)
    backend.warm_up([(WeightFormat.FP16, layout)])
    warm, wanted = set(wanted), []
    columns = make(32, 64, WeightFormat.FP16, layout)
    for rows in (1, 2, 8, 64, 300):
        backend.group([columns]).multiply(activations(rows, 32), [np.empty((rows, 64), np.float32)])
    assert wanted
    assert warm.issuperset(wanted)


def test_refuses_what_it_cannot_multiply(backend: NumbaBackend) -> None:
    good = make(8, 6, WeightFormat.FP16, Layout.NK)
    with pytest.raises(ValueError, match="1:7"):
        backend.group([replace(good, start=1)])
    with pytest.raises(ValueError, match="equal numbers"):
        backend.group([good, make(9, 6, WeightFormat.FP16, Layout.NK)])
    with pytest.raises(ValueError, match="at least 1"):
        NumbaBackend(0)
    group, x, y = backend.group([good]), activations(2, 8), np.zeros((2, 6), np.float32)
    group.multiply(x, [y])
    for bad_x, bad_outputs in (
        (x[:, ::2], [y]),
        (x.astype(np.float64), [y]),
        (x[:1], [y]),
        (x, []),
        (x, [y[:, :5]]),
        (x, [y[:1]]),
    ):
        with pytest.raises(ValueError, match=r"must be|need as many"):
            group.multiply(bad_x, bad_outputs)


def bf16_reference(x: Array) -> Array:
    """Nearest even on the bits, NaN kept quiet: the definition, in 64-bit integers."""
    bits = x.view(np.uint32).astype(np.uint64)
    rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
    return np.where(np.isnan(x), bits >> 16 | 0x40, rounded).astype(np.uint16)


def check_cast(x: Array) -> None:
    bf16 = np.empty(x.shape, np.uint16)
    cast_activations(x, bf16, WeightFormat.BF16)
    np.testing.assert_array_equal(bf16, bf16_reference(x))
    fp16 = np.empty(x.shape, np.float16)
    cast_activations(x, fp16, WeightFormat.FP16)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        expected = x.astype(np.float16)
    nan = np.isnan(x)
    np.testing.assert_array_equal(np.isnan(fp16), nan)
    np.testing.assert_array_equal(fp16.view(np.uint16)[~nan], expected.view(np.uint16)[~nan])


def test_casts_every_kind_of_number() -> None:
    # All signs, exponents and upper mantissas, each with lower bits below, at and above the middle.
    upper = np.arange(1 << 16, dtype=np.uint32) << 16
    lower = np.array([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF], np.uint32)
    check_cast((upper[None, :] | lower[:, None]).view(np.float32))
    # fp16's own middles: 13 bits fall away, and more below its smallest normal number.
    fine = np.arange(0x3300_0000, 0x4780_1000, 0x800, dtype=np.uint32)
    check_cast(np.stack([fine, fine | 1, fine - 1, fine | 0x8000_0000]).view(np.float32))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=70))
def test_casts_any_bits(bits: list[int]) -> None:
    check_cast(np.array([bits], np.uint32).view(np.float32))


def test_cast_to_fp32_copies_and_bad_arrays_are_refused() -> None:
    x = activations(3, 5)
    out = np.zeros_like(x)
    cast_activations(x, out, WeightFormat.FP32)
    np.testing.assert_array_equal(out, x)
    for bad_x, bad_out, weight_format in (
        (x, np.zeros((3, 5), np.float16), WeightFormat.BF16),
        (x, np.zeros((3, 4), np.float16), WeightFormat.FP16),
        (x[:, ::2], np.zeros((3, 3), np.float16), WeightFormat.FP16),
        (x, np.zeros((3, 5), np.int8), WeightFormat.INT8),
    ):
        with pytest.raises(ValueError, match=r"cast|contiguous"):
            cast_activations(bad_x, bad_out, weight_format)


# Counts the passes of compilations: seconds would depend on the machine.
COUNTED = """
import numpy as np
from numba.core import event
from offload.host.base import HostColumns; from offload.host.backend import NumbaBackend
from offload.spec.linear import Layout, WeightFormat
from offload.storage.stored_weight import StoredWeight
with event.install_recorder("numba:run_pass") as recorder:
    {work}
print(len(recorder.buffer))
"""
# The smallest kernel there is, and all that a product takes.
CAST = """
    from ctypes import CFUNCTYPE, c_int64, c_void_p
    from offload.host.kernels import compiled, loops
    x, y = np.ones(8, np.float32), np.zeros(8, np.float16)
    cast = CFUNCTYPE(None, c_void_p, c_void_p, c_int64, c_int64)(compiled.kernel_address(loops.cast, WeightFormat.FP16))
    cast(x.ctypes.data, y.ctypes.data, 0, 8)
    assert (y == 1).all()
"""
MULTIPLY = """
    columns = HostColumns(StoredWeight.dense(np.ones((40, 24), np.float16), WeightFormat.FP16, Layout.NK), 0, 40)
    y = np.zeros((1, 40), np.float32)
    NumbaBackend(1).group([columns]).multiply(np.ones((1, 24), np.float32), [y])
    assert (y == 24).all()
"""
NO_FOLDER = """
from numba.core import caching
getattr(caching, "CacheImpl", getattr(caching, "_CacheImpl", None))._locator_classes = []
"""
FULL_DISK = """
from numba.core import caching
def save(*args): raise OSError(28, "No space left on device")
caching.IndexDataCacheFile.save = save
"""


def compilations(work: str, cache: Path | None = None, trouble: str = "") -> int:
    """Run this work in a process with this cache, else the usual one; give how many passes of the compiler ran."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", trouble + COUNTED.format(work=work.strip())],
        env={**os.environ, **({"XDG_CACHE_HOME": str(cache)} if cache else {})},
        cwd=REPOSITORY,
        check=True,
        capture_output=True,
        text=True,
    )
    assert not done.stderr
    return int(done.stdout)


def test_a_second_process_compiles_nothing() -> None:
    package = REPOSITORY / "offload" / "host" / "kernels"
    beside = {*package.rglob("*.nb?")}  # an older version may have left some
    compilations(MULTIPLY)
    assert compilations(MULTIPLY) == 0
    assert {*package.rglob("*.nb?")} == beside


def test_what_anybody_could_have_written_is_compiled_anew(tmp_path: Path) -> None:
    assert compilations(CAST, tmp_path) > 0
    assert compilations(CAST, tmp_path) == 0
    (tmp_path / "hybrid-run").chmod(0o777)
    assert compilations(CAST, tmp_path) > 0
    (tmp_path / "hybrid-run").chmod(0o755)
    assert compilations(CAST, tmp_path) == 0
    assert (tmp_path / "hybrid-run").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("trouble", [NO_FOLDER, FULL_DISK])
def test_works_where_nothing_can_be_cached(tmp_path: Path, trouble: str) -> None:
    assert compilations(CAST, tmp_path, trouble) > 0
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
