"""Streaming through the ring, on every device."""

from typing import Any

import numpy as np
import pytest

from offload.devices.base import DeviceArray
from offload.errors import OutOfDeviceMemoryError
from offload.plan.packing import ColumnMatrix, split_columns
from offload.spec.linear import ColumnRange, Layout, WeightFormat
from offload.weights.vram_ring import Piece, WeightRing
from tests.device.support import download, linear, upload

INNER, COLUMNS, SLOT_BYTES = 16, 8, 512
FP32 = WeightFormat.FP32
MATRIX = ColumnMatrix(((linear("q", "q", INNER, COLUMNS, FP32), ColumnRange(0, COLUMNS)),))


class Stage:
    """Pieces, an input, and an output for every use of a piece."""

    def __init__(self, device: Any, pieces: int, uses: int, slots: int) -> None:
        rng = np.random.default_rng(0)
        self.device = device
        self.compute = device.stream("compute")
        # Small integers: exact sums, so that a wrong slot cannot hide in a tolerance.
        self.weights = [rng.integers(-9, 9, (COLUMNS, INNER)).astype(np.float32) for _ in range(pieces)]
        self.x = rng.integers(-9, 9, (2, INNER)).astype(np.float32)
        self.memory = device.allocate(1024 + uses * 64)
        self.x_array = upload(device, self.compute, self.memory, 0, self.x, FP32)
        self.results: list[tuple[int, DeviceArray]] = []
        packed = [device.allocate_pinned(SLOT_BYTES) for _ in range(pieces)]
        for pinned, weight in zip(packed, self.weights, strict=True):
            pinned[:] = weight.reshape(-1).view(np.uint8)
        self.pieces = [Piece(MATRIX, (pinned,)) for pinned in packed]
        self.ring = WeightRing(device, self.compute, slots, SLOT_BYTES)
        self.ring.retarget(self.pieces)

    def use(self, piece: int, shift: int = 0) -> None:
        y = DeviceArray(self.memory, 1024 + len(self.results) * 64, (2, COLUMNS), FP32)
        self.multiply(self.ring.acquire(piece - shift), y)
        self.ring.release()
        self.results.append((piece, y))

    def multiply(self, weight: Any, y: DeviceArray) -> None:
        no_scratch = DeviceArray(self.memory, 0, (1, 0), WeightFormat.INT8)  # fp32 needs none
        self.compute.multiply(self.x_array, weight, y, Layout.NK, no_scratch)

    def check(self) -> None:
        for piece, y in self.results:
            assert np.array_equal(download(self.device, self.compute, y), self.x @ self.weights[piece].T)

    def close(self) -> None:
        self.compute.synchronize()
        self.ring.close()
        self.device.free(self.memory)


@pytest.mark.parametrize("slots", [1, 2, 3])
@pytest.mark.parametrize("pieces", [1, 2, 7])
def test_every_step_sees_every_piece(device: Any, slots: int, pieces: int) -> None:
    stage = Stage(device, pieces, uses=4 * pieces, slots=slots)
    for _ in range(4):
        for piece in range(pieces):
            stage.use(piece)
    stage.check()
    stage.close()


def test_pieces_may_be_left_out(device: Any) -> None:
    stage = Stage(device, pieces=5, uses=8, slots=2)
    for piece in (0, 2, 3, 1, 4, 4, 0, 3):
        stage.use(piece)
    stage.check()
    stage.close()


def test_an_unreleased_piece_does_no_harm(device: Any) -> None:
    stage = Stage(device, pieces=3, uses=3, slots=2)
    stage.ring.acquire(0)  # as when a step is interrupted
    for piece in (0, 1, 0):
        stage.use(piece)
    stage.check()
    stage.close()


@pytest.mark.parametrize("slots", [1, 2, 3])
def test_the_ring_may_be_retargeted_to_other_pieces(device: Any, slots: int) -> None:
    stage = Stage(device, pieces=5, uses=12, slots=slots)
    both = stage.pieces
    orders = {"some": both[3:], "all": both}
    for order, uses in (("some", [3, 4, 3]), ("all", [0, 1, 2]), ("some", [3]), ("all", [0, 1, 2, 3, 4])):
        stage.ring.retarget(orders[order])
        for piece in uses:
            stage.use(piece, shift=3 if order == "some" else 0)
    stage.check()
    stage.ring.retarget([])
    stage.ring.retarget(orders["some"])
    stage.close()


def test_an_aim_kept_goes_on_where_it_was(device: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage(device, pieces=3, uses=2, slots=2)
    copied: list[int] = []
    monkeypatch.setattr(stage.ring._copies, "copy_to_device", lambda dst, src: copied.append(src.ctypes.data))
    stage.ring.retarget(stage.pieces)
    assert copied == []
    stage.ring.release()
    assert copied == [stage.pieces[2].pinned[0].ctypes.data]


def test_slots_are_given_back(device: Any) -> None:
    before = device.memory().free_bytes
    stage = Stage(device, pieces=3, uses=1, slots=2)
    stage.use(1)
    stage.close()
    assert device.memory().free_bytes == before


def test_refuses_slots_that_cannot_be(device: Any) -> None:
    compute = device.stream("compute")
    with pytest.raises(ValueError, match="at least one slot"):
        WeightRing(device, compute, 0, 512)
    with pytest.raises(ValueError, match="multiple of 256"):
        WeightRing(device, compute, 1, 500)
    with pytest.raises(OutOfDeviceMemoryError):
        WeightRing(device, compute, 2, 1 << 50)


@pytest.mark.parametrize(
    ("columns", "slot_bytes", "expected"),
    [
        (100, 1000, [(0, 100)]),  # 10 bytes a column: all fit
        (101, 1000, [(0, 64), (64, 101)]),  # 96 whole-tile columns fit; two near halves in tiles of 16
        (33, 329, [(0, 32), (32, 33)]),
        (7, 30, [(0, 3), (3, 6), (6, 7)]),  # slots smaller than a tile
        (3, 10, [(0, 1), (1, 2), (2, 3)]),
    ],
)
def test_split_columns(columns: int, slot_bytes: int, expected: list[tuple[int, int]]) -> None:
    assert split_columns(columns, 10, slot_bytes) == tuple(ColumnRange(*edges) for edges in expected)


def test_a_column_has_to_fit_a_slot() -> None:
    with pytest.raises(ValueError, match="does not fit a slot of 9 bytes"):
        split_columns(4, 10, 9)
