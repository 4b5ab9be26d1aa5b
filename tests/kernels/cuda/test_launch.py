"""The geometry of launches: every part of a weight belongs to one block, and the GPU has enough of them."""

import re

import pytest

from offload.devices.cuda.kernels import launch
from offload.devices.cuda.kernels.launch import SplitLaunch
from offload.devices.cuda.kernels.sources import program
from offload.plan.scratch import MAX_ROWS, most_splits, split_bytes
from offload.spec.linear import BlockFormat, Layout, WeightFormat

FP16, BF16, FP32 = WeightFormat.FP16, WeightFormat.BF16, WeightFormat.FP32
T4, H100 = 40, 132  # multiprocessors
SHARED_LIMIT_BYTES = 48 * 1024  # what a launch may ask for without further ado
SIZES = ((1, 1), (3, 17), (64, 8), (256, 2048), (256, 4096), (4096, 4096), (151_936, 896), (4096, 14_336))


def multiplications(rows: int, columns: int, inner: int, processors: int) -> list[tuple[int, SplitLaunch]]:
    """Each with the units that `inner` has."""
    int4, int8 = BlockFormat(4, 32, FP16), BlockFormat(8, 128, FP32)
    return [
        (-(-inner // 8), launch.multiply_float(FP16, Layout.NK, rows, columns, inner, True, processors)),
        (-(-inner // 4), launch.multiply_float(BF16, Layout.KN, rows, columns, inner, True, processors)),
        (-(-inner // 32), launch.multiply_blocks(int4, True, rows, columns, inner, True, processors)),
        (-(-inner // 16), launch.multiply_blocks(int8, True, rows, columns, inner, True, processors)),
    ]


@pytest.mark.parametrize("processors", [1, T4, H100])
@pytest.mark.parametrize(("columns", "inner"), SIZES)
def test_splits_cover_the_inner_dimension_once(columns: int, inner: int, processors: int) -> None:
    for rows in (1, MAX_ROWS):
        for units, made in multiplications(rows, columns, inner, processors):
            assert made.launch.blocks[1] == made.splits
            assert (made.splits - 1) * made.units_per_split < units <= made.splits * made.units_per_split
            assert made.launch.blocks[0] * (64 if "kn" in made.launch.kernel else 4) >= columns
            assert made.launch.threads in (32, 64, 96, 128)
            assert 0 < made.launch.shared_bytes <= SHARED_LIMIT_BYTES


@pytest.mark.parametrize(("processors", "inner"), [(T4, 2048), (T4, 4096), (H100, 4096)])
def test_256_columns_keep_the_processors_busy(processors: int, inner: int) -> None:
    """As far as that takes no splits of fewer than 256 features, where 64 columns of a [K, N] weight are a tile."""
    for _, made in multiplications(1, 256, inner, processors):
        tiles, splits = made.launch.blocks
        assert tiles * splits >= min(processors, tiles * most_splits(1, 256, inner))
        assert splits > 1
        assert made.scratch_bytes(1, 256) == splits * 256 * 4


def test_a_large_weight_is_not_split() -> None:
    for _, made in multiplications(1, 65_536, 4096, T4):
        assert made.splits == 1
        assert made.scratch_bytes(1, 65_536) == 0


def test_a_large_weight_has_full_blocks() -> None:
    for _, made in multiplications(1, 65_536, 4096, T4):
        assert made.launch.threads == 128


def test_the_grid_stays_within_what_cuda_allows() -> None:
    """2**31 - 1 blocks across, 65535 down."""
    form = BlockFormat(4, 32, FP16)
    panels = launch.dequantise(form, FP32, 200_000, 65_536, True)
    assert panels.blocks == (200_000, 64)
    assert launch.widen_bf16(200_000, 65_536, True).blocks == (200_000, 64)
    assert launch.fetch(1 << 32).blocks == (1 << 21, 1)
    assert launch.round_rows(FP16, 512, 1 << 23).blocks == (512, 1 << 14)
    assert launch.scale_rows(512, 200_000).blocks == (512, 391)
    for _, made in multiplications(1, 1, 1 << 24, H100):
        assert made.launch.blocks[1] <= 65_535


def test_kernels_are_named_for_what_they_take() -> None:
    name = launch.multiply_float(BF16, Layout.KN, 3, 64, 64, False, 1).launch.kernel
    assert name == "multiply_float_kn<Bf16, 3, false>"
    block16, block32 = BlockFormat(4, 16, FP32), BlockFormat(4, 32, FP16)
    assert launch.multiply_blocks(block16, True, 8, 64, 64, True, 1).launch.kernel == (
        "multiply_blocks_int8<4, Fp32, 2, 8, true>"
    )
    words = [
        launch.multiply_blocks(block32, False, rows, 64, 64, True, 1).launch.kernel.split(", ")[2] for rows in (2, 4, 8)
    ]
    assert words == ["4", "2", "1"]
    assert launch.dequantise(block32, FP16, 1, 64, True).kernel == "dequantise<4, Fp16, Fp16, true>"


def test_sizes_of_packed_weights() -> None:
    """3 blocks of 32, the last padded: 48 bytes of nibbles, 6 of scales, 2 of zero points."""
    form = BlockFormat(4, 32, FP16, zeros=True)
    assert (form.blocks(70), form.code_bytes(70), form.zero_bytes(70), form.column_bytes(70)) == (3, 48, 2, 56)
    form = BlockFormat(8, 32, FP32, zeros=True)
    assert (form.blocks(70), form.code_bytes(70), form.zero_bytes(70), form.column_bytes(70)) == (3, 96, 3, 111)


@pytest.mark.parametrize(("bits", "block", "scales"), [(2, 32, FP16), (4, 32, BF16), (4, 8, FP16), (8, 48, FP16)])
def test_what_no_kernel_reads_is_refused(bits: int, block: int, scales: WeightFormat) -> None:
    with pytest.raises(ValueError, match=r"no kernel multiplies|blocks of"):
        BlockFormat(bits, block, scales)


@pytest.mark.parametrize("processors", [1, T4, H100, 1000])
@pytest.mark.parametrize(("columns", "inner"), SIZES)
def test_splits_fit_into_the_scratch_memory_that_a_plan_counts(columns: int, inner: int, processors: int) -> None:
    for rows in range(1, MAX_ROWS + 1):
        for _, made in multiplications(rows, columns, inner, processors):
            assert made.splits <= most_splits(rows, columns, inner)
            assert made.scratch_bytes(rows, columns) <= split_bytes(rows, columns, inner)


def test_no_kernel_multiplies_fp32_or_many_rows() -> None:
    with pytest.raises(ValueError, match="no float kernel multiplies fp32"):
        launch.multiply_float(FP32, Layout.NK, 1, 64, 64, True, 1)
    with pytest.raises(ValueError, match="1 to 8 rows of x, not 0"):
        launch.multiply_float(FP16, Layout.NK, 0, 64, 64, True, 1)
    with pytest.raises(ValueError, match="a panel is fp16 or fp32"):
        launch.dequantise(BlockFormat(4, 32, FP16), BF16, 1, 64, True)
    with pytest.raises(ValueError, match="rows are rounded to fp16 or bf16, not fp32"):
        launch.round_rows(FP32, 1, 64)


def test_numbers_agree_with_the_sources() -> None:
    """The kernels' constants are those that launch.py assumes."""

    def constant(file: str, name: str) -> int:
        found = re.search(rf"\b{name} = (\d+)", program(file))
        assert found is not None
        return int(found[1])

    assert constant("common.cuh", "MAX_THREADS") == launch._MAX_THREADS
    assert constant("common.cuh", "COLUMNS_PER_BLOCK") == launch._COLUMNS_PER_BLOCK
    assert constant("float_kn.cu", "TILE") == launch._TILE
    assert constant("float_kn.cu", "STEP") == launch._STEP
    assert constant("float_kn.cu", "TILE") // constant("float_kn.cu", "ELEMENTS") == launch._THREADS_ACROSS
