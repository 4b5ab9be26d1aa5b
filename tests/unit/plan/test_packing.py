"""Packed matrices on a device, with sizes worked out by hand."""

from dataclasses import replace

import numpy as np
import pytest

from offload.plan.packing import (
    packed_stream_bytes,
    resident_bytes,
    resident_matrices,
    staging_bytes,
    streamed_matrices,
    working_memory,
)
from offload.spec.linear import BlockFormat, ColumnRange, Layout, WeightFormat
from offload.storage.stored_weight import StoredWeight
from offload.weights.column_reads import read_rows
from tests.device.support import blocks_linear, linear, place

# A group of two, 12 and 4 columns of 8 fp16 = 16 bytes; and 8 columns of 12 fp32 = 48 bytes.
Q, K = linear("q", "qkv", 8, 12), linear("k", "qkv", 8, 4)
OUT = linear("o", "o", 12, 8, WeightFormat.FP32, Layout.KN)


def test_a_group_becomes_one_matrix() -> None:
    placements = [place(Q, 0.5, 0.25), place(OUT, 0.5, 0), place(K, 1.0, 0)]
    qk, o = resident_matrices(placements)
    assert qk.segments == ((Q, ColumnRange(0, 6)), (K, ColumnRange(0, 4)))
    assert (qk.shape, qk.nbytes, qk.positions()) == ((10, 8), 160, [0, 6])
    assert (o.shape, o.nbytes) == ((12, 4), 192)
    assert resident_bytes(placements) == 256 + 256  # each aligned
    (streamed,) = streamed_matrices(placements)
    assert streamed.segments == ((Q, ColumnRange(6, 9)),)
    assert packed_stream_bytes(placements) == 256


def test_formats_and_layouts_do_not_mix() -> None:
    other = linear("v", "qkv", 8, 4, WeightFormat.BF16)
    turned = linear("w", "qkv", 8, 4, WeightFormat.FP16, Layout.KN)
    assert len(resident_matrices([place(spec, 1, 0) for spec in (Q, other, turned, K)])) == 3


def test_activations_fit_the_widest_group() -> None:
    """10 tokens: qkv has x 10*8*4 = 320 and y 10*10*4 = 400; o has x 10*12*4 = 480 and y 10*4*4 = 160.

    Beyond 8 tokens, qkv's x is rounded to 10*8*2 = 160 bytes of scratch, with 10*4 of scales; o's weights are fp32.
    """
    placements = [place(Q, 0.5, 0.0), place(K, 1.0, 0), place(OUT, 0.25, 0.25)]
    working = working_memory(placements, 10)
    assert (working.x_bytes, working.y_bytes, working.scratch_bytes) == (512, 512, 512)
    assert (working.pinned_bytes, working.device_bytes) == (1024, 1536)
    assert working_memory(placements, 8).scratch_bytes == 0
    assert working_memory([place(Q, 0, 0)], 10).device_bytes == 0


def test_a_group_of_two_formats_has_its_input_twice() -> None:
    """100 tokens: x 100*8*4 = 3200 for each format, y 100*(12+4)*4 = 6400."""
    placements = [place(Q, 1, 0), place(linear("k", "qkv", 8, 4, WeightFormat.BF16), 0, 1)]
    assert working_memory(placements, 100).pinned_bytes == 2 * 3328 + 6400


def test_streamed_columns_lie_together_as_the_host_keeps_them() -> None:
    """200 features of int8 on load: 4 blocks of 64 bytes and 4 fp16 scales a column; resident ones stay fp16."""
    q = linear("q", "g", 200, 32)
    placements = [place(q, 0.25, 0.5, host_format=WeightFormat.INT8)]
    (resident,), (streamed,) = resident_matrices(placements), streamed_matrices(placements)
    assert (resident.blocks, resident.column_bytes) == (None, 400)
    assert streamed.blocks == BlockFormat(8, 64, WeightFormat.FP16)
    assert (streamed.format, streamed.column_bytes, streamed.nbytes) == (WeightFormat.INT8, 264, 16 * 264)
    assert packed_stream_bytes(placements) == 17 * 256


def test_scratch_holds_what_a_gemm_of_blocks_is_made_of() -> None:
    """9 tokens of 200 features in blocks of 64: x as fp16 and a panel of 32 columns; 8: x as int8 and 4 scales."""
    q = blocks_linear("q", "g", 200, 32, BlockFormat(4, 64, WeightFormat.FP32, zeros=True))
    halves, scales, panel = 15 * 256, 256, 50 * 256
    assert working_memory([place(q, 1, 0)], 9).scratch_bytes == halves + scales + panel
    assert working_memory([place(q, 1, 0)], 8).scratch_bytes == 8 * 256 + 256
    assert resident_bytes([place(q, 1, 0)]) == 19 * 256  # 32 * (128 + 16 + 2) = 4672
    assert staging_bytes([place(q, 1, 0)]) == 2 * 19 * 256


def test_a_few_tokens_need_room_for_the_sums_of_splits() -> None:
    """2 tokens, 1024 features make up to 4 splits: 4 * 2 * 12 * 4 = 384 bytes; wide ones stop at 2 MiB."""
    assert working_memory([place(linear("q", "g", 1024, 12), 1, 0)], 2).scratch_bytes == 512
    assert working_memory([place(linear("q", "g", 1024, 32000), 1, 0)], 8).scratch_bytes == 2 << 20


@pytest.mark.parametrize("layout", list(Layout))
def test_cuts_and_rows_are_the_right_columns(layout: Layout) -> None:
    """Every cut of two Linears' middle columns, and every range of its stored rows."""
    a, b = (linear(name, "g", 3, 6, WeightFormat.FP32, layout) for name in "ab")
    numbers = {"a": np.arange(18, dtype=np.float32), "b": 100 + np.arange(18, dtype=np.float32)}
    matrices = {name: values.reshape((3, 6) if layout is Layout.KN else (6, 3)) for name, values in numbers.items()}
    weights = {name: StoredWeight.dense(matrix, WeightFormat.FP32, layout) for name, matrix in matrices.items()}
    (matrix,) = streamed_matrices([place(a, 1 / 6, 0.5), place(b, 1 / 3, 0.5)])
    axis = 1 if layout is Layout.KN else 0
    whole = np.concatenate([np.take(matrices["a"], range(1, 4), axis), np.take(matrices["b"], range(2, 5), axis)], axis)
    for start in range(6):
        for stop in range(start + 1, 7):
            part = matrix.cut(ColumnRange(start, stop))
            expected = np.take(whole, range(start, stop), axis)
            assert part.shape == expected.shape
            for first in range(part.shape[0]):
                for last in range(first + 1, part.shape[0] + 1):
                    out = np.full((last - first, part.shape[1]), np.nan, np.float32)
                    read_rows(part, weights, first, out)
                    assert np.array_equal(out, expected[first:last])


def test_quantised_columns_that_are_not_in_known_blocks_cannot_be_on_a_device() -> None:
    spec = replace(linear("q", "g", 8, 8), format=WeightFormat.INT4)
    assert resident_matrices([place(spec, 0, 0)]) == ()
    with pytest.raises(ValueError, match="q: int4 columns like these cannot be on a device"):
        resident_matrices([place(spec, 1, 0)])
