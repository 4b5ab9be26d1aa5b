"""Pinned blocks of streamed weights, with sizes worked out by hand."""

import numpy as np
import pytest

from offload.weights import store


class PinnedSizes:
    """A device that pins memory, and keeps how much it was asked for."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def allocate_pinned(self, nbytes: int) -> np.ndarray:  # type: ignore[type-arg]
        self.asked.append(nbytes)
        return np.full(nbytes, len(self.asked), np.uint8)


@pytest.mark.parametrize(
    ("sizes", "blocks"),
    [
        ([], []),
        ([100], [100]),
        ([100, 200, 300], [300, 300]),  # a block is filled to the last byte
        ([100, 201], [100, 201]),
        ([1000, 10, 1000], [1000, 10, 1000]),  # a matrix that is larger than a block has one of its own
    ],
)
def test_blocks_are_filled_in_order(sizes: list[int], blocks: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "PINNED_BLOCK_BYTES", 300)
    device = PinnedSizes()
    arrays = store._pinned(device, sizes)  # type: ignore[arg-type]
    assert device.asked == blocks
    assert [array.nbytes for array in arrays] == sizes
    for number, array in enumerate(arrays):
        array[:] = 100 + number
    assert [array[0] for array in arrays] == [100 + number for number in range(len(sizes))], "none overlaps another"
