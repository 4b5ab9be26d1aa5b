"""What lies together on a device, with sizes worked out by hand."""

import numpy as np
import pytest

from offload.packing import (
    activation_bytes,
    packed_stream_bytes,
    resident_bytes,
    resident_matrices,
    streamed_matrices,
)
from offload.specs import ColumnRange, Layout, WeightFormat
from tests.device.support import linear, place

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
    """10 tokens: qkv has x 10*8*2 = 160 and y 10*10*4 = 400; o has x 10*12*4 = 480 and y 10*4*4 = 160."""
    placements = [place(Q, 0.5, 0.0), place(K, 1.0, 0), place(OUT, 0.25, 0.25)]
    assert activation_bytes(placements, 10) == 512 + 512
    assert activation_bytes([place(Q, 0, 0)], 10) == 0


def test_a_group_of_two_formats_has_its_input_twice() -> None:
    """100 tokens: x 100*8*2 = 1600 in each format, y 100*(12+4)*4 = 6400."""
    placements = [place(Q, 1, 0), place(linear("k", "qkv", 8, 4, WeightFormat.BF16), 0, 1)]
    assert activation_bytes(placements, 100) == 2 * 1792 + 6400


@pytest.mark.parametrize("layout", list(Layout))
def test_cuts_and_rows_are_the_right_columns(layout: Layout) -> None:
    """Every cut of two Linears' middle columns, and every range of its stored rows."""
    a, b = (linear(name, "g", 3, 6, WeightFormat.FP32, layout) for name in "ab")
    weights = {"a": np.arange(18, dtype=np.float32), "b": 100 + np.arange(18, dtype=np.float32)}
    weights = {name: weight.reshape((3, 6) if layout is Layout.KN else (6, 3)) for name, weight in weights.items()}
    (matrix,) = streamed_matrices([place(a, 1 / 6, 0.5), place(b, 1 / 3, 0.5)])
    axis = 1 if layout is Layout.KN else 0
    whole = np.concatenate([np.take(weights["a"], range(1, 4), axis), np.take(weights["b"], range(2, 5), axis)], axis)
    for start in range(6):
        for stop in range(start + 1, 7):
            part = matrix.cut(ColumnRange(start, stop))
            expected = np.take(whole, range(start, stop), axis)
            assert part.shape == expected.shape
            for first in range(part.shape[0]):
                for last in range(first + 1, part.shape[0] + 1):
                    out = np.full((last - first, part.shape[1]), np.nan, np.float32)
                    part.read_rows(weights, first, out)
                    assert np.array_equal(out, expected[first:last])


def test_quantised_columns_cannot_be_on_a_device() -> None:
    spec = linear("q", "g", 8, 8, WeightFormat.INT4)
    assert resident_matrices([place(spec, 0, 0)]) == ()
    with pytest.raises(ValueError, match="q: int4 columns cannot be on a device"):
        resident_matrices([place(spec, 1, 0)])
