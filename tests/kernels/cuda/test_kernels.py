"""Every CUDA kernel, run on the CPU by tests/kernels/cuda/shim, against NumPy in float64."""

from itertools import product
from typing import Any

import numpy as np
import pytest

from offload.devices.cuda.kernels import launch
from offload.devices.cuda.own_kernels import CudaKernels, FloatRows, FloatWeight, Int8Rows
from offload.devices.row_scales import fp16_row_scales
from offload.host.cast import cast_activations
from offload.plan.scratch import MAX_ROWS
from offload.spec.linear import BlockFormat, Layout, WeightFormat
from tests.device.support import random_stored, to_float64
from tests.kernels.cuda.guarded import guarded
from tests.kernels.cuda.host_shim import HostLauncher, Schedule
from tests.kernels.cuda.operands import BlockOperands, FloatOperands, address, multiply, multiply_int8, quantised

HALVES = (WeightFormat.FP16, WeightFormat.BF16)
SCALES = (WeightFormat.FP16, WeightFormat.FP32)
ROWS = range(1, MAX_ROWS + 1)
# Columns and inner: one of each, uneven tails of both, more than one block and tile, rows that 16 bytes divide.
FLOAT_SIZES = ((1, 1), (3, 40), (17, 129), (72, 44), (256, 8), (64, 264))
BLOCK_SIZES = ((1, 16), (3, 256), (17, 200), (5, 1056), (256, 32))
FORMATS = tuple(
    BlockFormat(bits, block, scales)
    for (bits, block), scales in zip(product((4, 8), (16, 32, 128, 256)), SCALES * 4, strict=True)
)


def all_kernels() -> dict[str, set[str]]:
    """Name the kernels that these tests launch, by program, so that each program is compiled once."""
    launches = [launch.sum_splits(1, 1), launch.quantise_rows(1, 1), launch.fetch(1)]
    launches += [launch.round_rows(form, 1, 1) for form in HALVES]
    launches += [launch.row_scales(1), launch.scale_rows(1, 1)]
    launches += [launch.widen_bf16(1, 8, aligned) for aligned in (True, False)]
    for rows, aligned in product(ROWS, (True, False)):
        for form, layout in product(HALVES, Layout):
            launches.append(launch.multiply_float(form, layout, rows, 1, 8, aligned, 1).launch)
        for block_form, int8 in product(FORMATS, (True, False)):
            launches.append(launch.multiply_blocks(block_form, int8, rows, 1, 16, aligned, 1).launch)
    for block_form, panel, aligned in product(FORMATS, SCALES, (True, False)):
        launches.append(launch.dequantise(block_form, panel, 1, 8, aligned))
    kernels: dict[str, set[str]] = {}
    for each in launches:
        kernels.setdefault(each.program, set()).add(each.kernel)
    return kernels


@pytest.fixture(scope="module")
def compiled() -> HostLauncher:
    return HostLauncher({program: sorted(names) for program, names in all_kernels().items()})


@pytest.fixture
def launcher(compiled: HostLauncher) -> HostLauncher:
    compiled.launches.clear()
    compiled.schedule = Schedule.FORWARD
    return compiled


@pytest.fixture
def kernels(launcher: HostLauncher) -> CudaKernels:
    return CudaKernels(launcher, processors=2)


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("layout", list(Layout))
@pytest.mark.parametrize("form", HALVES)
def test_float_weights(
    kernels: CudaKernels, launcher: HostLauncher, form: WeightFormat, layout: Layout, rows: int
) -> None:
    for i, (columns, inner) in enumerate(FLOAT_SIZES):
        launcher.schedule = Schedule((rows + i) % len(Schedule))
        operands = FloatOperands.random(form, layout, rows, columns, inner)
        operands.check(multiply(kernels, operands, with_bias=i % 2 == 0), with_bias=i % 2 == 0)
    names = {each.kernel for each in launcher.launches}
    assert {name.endswith("true>") for name in names if name.startswith("multiply")} == {True, False}


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("form", FORMATS, ids=str)
def test_block_weights(kernels: CudaKernels, launcher: HostLauncher, form: BlockFormat, rows: int) -> None:
    for i in range(3):  # of five sizes, others for other rows
        columns, inner = BLOCK_SIZES[(rows + i) % len(BLOCK_SIZES)]
        launcher.schedule = Schedule((rows + i) % len(Schedule))
        operands = BlockOperands.random(form, (rows + i) % 2 == 0, rows, columns, inner)
        operands.check(multiply(kernels, operands, with_bias=i % 2 == 0), with_bias=i % 2 == 0)
        operands.check_int8(multiply_int8(kernels, operands, with_bias=i % 2 == 1), with_bias=i % 2 == 1)


@pytest.mark.parametrize("layout", list(Layout))
def test_a_thousand_columns(kernels: CudaKernels, layout: Layout) -> None:
    operands = FloatOperands.random(WeightFormat.FP16, layout, 2, 1000, 64)
    operands.check(multiply(kernels, operands), with_bias=False)


@pytest.mark.parametrize("int8", [True, False])
def test_a_thousand_quantised_columns(kernels: CudaKernels, int8: bool) -> None:
    operands = BlockOperands.random(BlockFormat(4, 32, WeightFormat.FP16), True, 1, 1000, 96)
    if int8:
        operands.check_int8(multiply_int8(kernels, operands), with_bias=False)
    else:
        operands.check(multiply(kernels, operands), with_bias=False)


@pytest.mark.parametrize("at_start", [True, False])
@pytest.mark.parametrize("layout", list(Layout))
def test_unaligned_starts(kernels: CudaKernels, launcher: HostLauncher, layout: Layout, at_start: bool) -> None:
    """Sizes that 16 bytes divide, at addresses that they do not; and what lies before an array is not read."""
    for slack_bytes, aligned in ((2, False), (6, False), (0, True)):
        operands = FloatOperands.random(WeightFormat.FP16, layout, 3, 24, 64, slack_bytes, at_start=at_start)
        operands.check(multiply(kernels, operands), with_bias=False)
        assert launcher.launches[0].kernel.endswith("true>") == aligned
        launcher.launches.clear()


@pytest.mark.parametrize("at_start", [True, False])
@pytest.mark.parametrize("bits", [4, 8])
def test_unaligned_blocks(kernels: CudaKernels, launcher: HostLauncher, bits: int, at_start: bool) -> None:
    for slack_bytes, aligned in ((1, False), (8, False), (0, True)):
        form = BlockFormat(bits, 64, WeightFormat.FP16)
        operands = BlockOperands.random(form, True, 3, 9, 128, slack_bytes, at_start=at_start)
        operands.check(multiply(kernels, operands), with_bias=False)
        operands.check_int8(multiply_int8(kernels, operands), with_bias=False)
        multiplications = [each.kernel for each in launcher.launches if each.kernel.startswith("multiply")]
        assert {name.endswith("true>") for name in multiplications} == {aligned}
        launcher.launches.clear()


@pytest.mark.parametrize("processors", [1, 40])
def test_the_same_bits_under_every_schedule(launcher: HostLauncher, processors: int) -> None:
    """Several warps a block, with one split and with several: the order of all sums is fixed."""
    kernels = CudaKernels(launcher, processors)
    cases: list[Any] = [
        (multiply, FloatOperands.random(WeightFormat.FP16, Layout.NK, 3, 18, 1032)),
        (multiply, FloatOperands.random(WeightFormat.BF16, Layout.KN, 3, 264, 520)),
        (multiply, BlockOperands.random(BlockFormat(4, 32, WeightFormat.FP16), True, 3, 18, 4096)),
        (multiply_int8, BlockOperands.random(BlockFormat(8, 32, WeightFormat.FP16), True, 3, 18, 2048)),
    ]
    for function, operands in cases:
        results = []
        launcher.launches.clear()
        for schedule in Schedule:
            launcher.schedule = schedule
            results.append(function(kernels, operands, with_bias=True))
        operands.check_int8(results[0], True) if function is multiply_int8 else operands.check(results[0], True)
        assert all(np.array_equal(results[0], other) for other in results[1:])
        multiplications = [each for each in launcher.launches if each.kernel.startswith("multiply")]
        splits = {each.blocks[1] for each in multiplications}
        assert (max(splits) > 1) == (processors > 1)
        assert processors > 1 or min(each.threads for each in multiplications) > 32


def test_quantised_rows(kernels: CudaKernels) -> None:
    """As NumPy in fp32, to the bit; a padded last block; a block of zeros; values that round to even."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((3, 100)).astype(np.float32)
    x[1, 32:64] = 0
    x[2, :32] = np.linspace(-127, 127, 32)
    x[2, 1:5] = [0.5, 1.5, 2.5, -0.5]
    x = guarded(x)
    codes, scales = guarded(np.full((3, 4, 32), 99, np.int8)), guarded(np.full((3, 4), np.nan, np.float32))
    kernels.quantise(FloatRows(address(x), 3, 100), Int8Rows(address(codes), address(scales), 3, 32, 100), 1)
    expected = quantised(np.pad(x, ((0, 0), (0, 28))), 3, 32)
    assert np.array_equal(codes, expected[0])
    assert np.array_equal(scales, expected[1])
    assert list(codes[2, 0, 1:5]) == [0, 2, 2, 0]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_not_hidden(kernels: CudaKernels, bad: float) -> None:
    """Quantised or not, a row with NaN or infinity gives no finite result, and other rows do not notice."""
    operands = BlockOperands.random(BlockFormat(8, 32, WeightFormat.FP16), False, 2, 6, 64)
    operands.x[0, 40] = bad
    for y in (multiply(kernels, operands), multiply_int8(kernels, operands)):
        assert not np.isfinite(y[0]).any()
        assert np.isfinite(y[1]).all()


@pytest.mark.parametrize("panel", SCALES)
@pytest.mark.parametrize("form", FORMATS, ids=str)
def test_panels_are_exact(kernels: CudaKernels, form: BlockFormat, panel: WeightFormat) -> None:
    """DequantizeLinear in fp32, rounded once for fp16; any range of columns; aligned and not."""
    for inner, has_zeros, (start, stop) in ((200, True, (0, 5)), (256, False, (1, 4)), (77, True, (4, 5))):
        operands = BlockOperands.random(form, has_zeros, 1, 5, inner)
        out = guarded(np.full((stop - start, inner), np.nan, panel.storage_dtype))
        kernels.dequantise(operands.weight, start, stop, address(out), panel, 1)
        expected = operands.dequantised()[start:stop].astype(panel.storage_dtype)
        assert np.array_equal(out.view(np.uint8), expected.view(np.uint8))


@pytest.mark.parametrize("schedule", list(Schedule))
@pytest.mark.parametrize("nbytes", [1, 16, 37, 2048, 5000])
def test_fetch_copies_every_byte(kernels: CudaKernels, launcher: HostLauncher, nbytes: int, schedule: Schedule) -> None:
    """Whatever the alignment of either end; and nothing is read or written before or behind them."""
    launcher.schedule = schedule
    data = np.random.default_rng(nbytes).integers(0, 256, nbytes, np.uint8)
    for slack, at_start in ((0, False), (0, True), (3, False), (8, True)):
        source = guarded(data, slack, at_start)
        for target in (guarded(np.zeros(nbytes, np.uint8), 0, at_start), guarded(np.zeros(nbytes, np.uint8), slack)):
            kernels.fetch(address(source), address(target), nbytes, 1)
            assert np.array_equal(target, data)


def hard_to_round() -> Any:
    """Ties, edges of the ranges, subnormal results, infinity and values of all magnitudes, of both signs."""
    rng = np.random.default_rng(0)
    hard = [1 + 2**-11, 1 + 3 * 2**-11, 65504, 65519.99, 65520, 1e9, 2**-24, 2**-25, 1.5 * 2**-24, 2.0**-14, 6e-5, 0]
    hard += [1 + 2**-8, 1 + 3 * 2**-8, 3.3895e38, 3.3961e38, 3.4e38, np.inf, 1e-40]
    values = np.concatenate([hard, np.exp2(rng.uniform(-27, 17, 500)), np.exp2(rng.uniform(-149, 127, 500))])
    return np.concatenate([values, -values]).astype(np.float32)


@pytest.mark.parametrize("slack_bytes", [0, 2])
@pytest.mark.parametrize("form", HALVES)
def test_rounded_rows_are_those_of_the_host(kernels: CudaKernels, form: WeightFormat, slack_bytes: int) -> None:
    """To the bit; NaN stays NaN. Sizes that 4 divides and not, ends that are aligned and not."""
    values = hard_to_round()
    for count in (1, 7, 512, len(values)):
        x = guarded(values[:count], 2 * slack_bytes)
        out = guarded(np.zeros(count, form.storage_dtype), slack_bytes)
        kernels.round_rows(FloatRows(address(x), 1, count), address(out), form, 1)
        expected = np.empty((1, count), form.storage_dtype)
        cast_activations(np.ascontiguousarray(x).reshape(1, -1), expected, form)
        assert np.array_equal(out.view(np.uint16), expected[0].view(np.uint16))
    for bits in (0x7F800001, 0x7FFFFFFF, 0xFFC00000):
        nan, out = guarded(np.array([bits], np.uint32)), guarded(np.zeros(1, form.storage_dtype))
        kernels.round_rows(FloatRows(address(nan), 1, 1), address(out), form, 1)
        assert np.isnan(to_float64(out, form)).all()


@pytest.mark.parametrize("inner", [1, 32, 75, 300])
def test_scales_of_rows_are_those_of_the_simulated_device(kernels: CudaKernels, inner: int) -> None:
    """To the bit: rows of all magnitudes, at the edges of what fits, with NaN and infinity."""
    edges = [0, 65504, 65504.01, 65520, 2**-6, 2**-6 * (1 - 2**-24), 1e30, 3.4e38, 1e-30, 2**-126, 1e-44]
    edges += [np.inf, np.nan]
    x = np.random.default_rng(inner).uniform(-1, 1, (len(edges), inner))
    x[:, 0] = 1
    with np.errstate(invalid="ignore"):
        x = guarded((x * np.array(edges)[:, None]).astype(np.float32))
    rows, expected = FloatRows(address(x), *x.shape), fp16_row_scales(np.array(x))
    scales = guarded(np.zeros(len(x), np.float32))
    kernels.row_scales(rows, address(scales), 1)
    assert np.array_equal(scales, expected[:, 0])
    assert (np.log2(expected) % 1 == 0).all()
    assert (expected[[0, 1, 4, 11, 12]] == 1).all()
    out = guarded(np.zeros(x.shape, np.float16))
    kernels.round_rows(rows, address(out), WeightFormat.FP16, 1, scales=address(scales))
    assert np.array_equal(out, (x / expected).astype(np.float16), equal_nan=True)
    assert np.isfinite(out[:-2]).all()
    y = guarded(np.ones((len(x), inner), np.float32))
    kernels.scale_rows(address(y), address(scales), len(x), inner, 1)
    assert np.array_equal(y, np.repeat(expected, inner, 1))


@pytest.mark.parametrize("layout", list(Layout))
@pytest.mark.parametrize(("columns", "inner"), [(24, 64), (1030, 16), (17, 43), (9, 1)])
def test_bf16_widens_exactly(
    kernels: CudaKernels, launcher: HostLauncher, layout: Layout, columns: int, inner: int
) -> None:
    """Any range of columns, in the layout that it had."""
    rng = np.random.default_rng([columns, inner])
    shape = (columns, inner) if layout is Layout.NK else (inner, columns)
    for start, stop, slack_bytes in ((0, columns, 0), (8, columns, 0), (1, columns - 1, 0), (0, 8, 2)):
        launcher.schedule = Schedule((start + stop) % len(Schedule))
        stored = guarded(random_stored(rng, shape, WeightFormat.BF16), slack_bytes)
        part = stored[start:stop] if layout is Layout.NK else stored[:, start:stop]
        out = guarded(np.zeros(part.shape, np.float32))
        weight = FloatWeight(address(stored), WeightFormat.BF16, layout, columns, inner)
        kernels.widen_bf16(weight, start, stop, address(out), 1)
        assert np.array_equal(out, to_float64(np.ascontiguousarray(part), WeightFormat.BF16))
    names = {each.kernel for each in launcher.launches}
    assert ("widen_bf16<true>" in names) == ((inner if layout is Layout.NK else columns) % 8 == 0)


def test_all_halves_widen_exactly(kernels: CudaKernels) -> None:
    """Every fp16 number as a scale, with weights of 1: subnormal numbers and infinities too."""
    form = BlockFormat(8, 16, WeightFormat.FP16)
    operands = BlockOperands.random(form, False, 1, 64, 1024 * 16)
    operands.scales[:] = np.arange(1 << 16, dtype=np.uint16).view(np.float16).reshape(64, 1024)
    operands.codes[:] = 129
    out = guarded(np.zeros((64, 1024 * 16), np.float32))
    kernels.dequantise(operands.weight, 0, 64, address(out), WeightFormat.FP32, 1)
    expected = operands.scales.astype(np.float32)
    assert np.array_equal(out.reshape(64, 1024, 16)[:, :, 0], expected, equal_nan=True)


def test_rounding_to_half_is_to_nearest_even(kernels: CudaKernels) -> None:
    """Ties, the edge of the range, subnormal results, and values of all magnitudes, as NumPy rounds them."""
    rng = np.random.default_rng(0)
    hard = [1 + 2**-11, 1 + 3 * 2**-11, 65504, 65519.99, 65520, 1e9, 2**-24, 2**-25, 1.5 * 2**-24, 2.0**-14, 6e-5, 0]
    values = np.concatenate([hard, np.exp2(rng.uniform(-27, 17, 500))]).astype(np.float32)
    operands = BlockOperands.random(BlockFormat(8, 16, WeightFormat.FP32), False, 1, len(values), 16)
    operands.scales[:, 0] = values
    operands.codes[:] = [129, 127] * 8
    out = guarded(np.zeros((len(values), 16), np.float16))
    kernels.dequantise(operands.weight, 0, len(values), address(out), WeightFormat.FP16, 1)
    with np.errstate(over="ignore"):
        assert np.array_equal(out[:, 0], values.astype(np.float16))
        assert np.array_equal(out[:, 1], -values.astype(np.float16))


def test_operands_that_do_not_belong_together(kernels: CudaKernels) -> None:
    floats = FloatWeight(256, WeightFormat.FP16, Layout.NK, 8, 64)
    blocks = BlockOperands.random(BlockFormat(4, 32, WeightFormat.FP16), False, 1, 8, 64).weight
    with pytest.raises(ValueError, match="x has 32 features and the weight takes 64"):
        kernels.multiply(FloatRows(256, 1, 32), floats, 256, 1)
    with pytest.raises(ValueError, match="int8 rows are for block-quantised"):
        kernels.multiply(Int8Rows(256, 256, 1, 32, 64), floats, 256, 1)
    with pytest.raises(ValueError, match="x is in blocks of 64 and the weight in blocks of 32"):
        kernels.multiply(Int8Rows(256, 256, 1, 64, 64), blocks, 256, 1)
    with pytest.raises(ValueError, match="multiple of 16 bytes, not at 0x108"):
        Int8Rows(264, 256, 1, 32, 64)
    with pytest.raises(ValueError, match="columns 3:9 are not among 8"):
        kernels.dequantise(blocks, 3, 9, 256, WeightFormat.FP16, 1)
    with pytest.raises(ValueError, match="columns 8:9 are not among 8"):
        kernels.widen_bf16(FloatWeight(256, WeightFormat.BF16, Layout.NK, 8, 64), 8, 9, 256, 1)
    with pytest.raises(ValueError, match="1 to 8 rows of x, not 9"):
        kernels.multiply(FloatRows(256, 9, 64), floats, 256, 1)
    with pytest.raises(ValueError, match=r"needs \d+ bytes of scratch"):
        kernels.multiply(FloatRows(256, 1, 4096), FloatWeight(256, WeightFormat.FP16, Layout.NK, 8, 4096), 256, 1)
