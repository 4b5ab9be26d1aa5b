"""The read-ahead ring: the right bytes in the right order, never before they are there; no hang when a read fails."""

import errno
import os
import threading
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from offload.errors import OffloadError
from offload.plan.ram_tiers import PAGE_BYTES
from offload.storage.weight_file import FileRange, WeightFile
from offload.weights import disk_ring
from offload.weights.disk_ring import DiskRing, seats
from offload.weights.reads import split_rows

ROUNDS = 5


def write(folder: Path, nbytes: int) -> tuple[Path, np.ndarray]:  # type: ignore[type-arg]
    content = np.random.default_rng(nbytes).integers(0, 256, nbytes, np.uint8)
    (folder / "weights").write_bytes(content.tobytes())
    return folder / "weights", content


def parts_of(path: Path, sizes: list[int], first: int = 27) -> list[FileRange]:
    parts, file = [], WeightFile.at(path)
    for size in sizes:
        parts.append(FileRange(file, first, size))
        first += size
    return parts


def walk(ring: DiskRing, pieces: Iterable[int]) -> None:
    for piece in pieces:
        ring.release()
        ring.acquire(piece)


def alone(parts: list[FileRange]) -> list[list[FileRange]]:
    """Every part a piece of its own."""
    return [[part] for part in parts]


def expected(content: np.ndarray, part: FileRange) -> bytes:  # type: ignore[type-arg]
    return content[part.offset : part.offset + part.nbytes].tobytes()


@given(
    spans=st.lists(st.integers(1, 12), min_size=1, max_size=30),
    extra=st.integers(0, 20),
)
def test_no_seat_is_taken_before_it_is_free(spans: list[int], extra: int) -> None:
    """In units of a byte: played for several rounds, a piece overlaps only pieces that were released."""
    capacity = max(spans) + extra
    found, count = seats(spans, capacity), len(spans)
    for number in range(4 * count):
        piece = number % count
        start, stop = found[piece].offset_bytes, found[piece].offset_bytes + spans[piece]
        assert 0 <= start < stop <= capacity
        assert 1 <= found[piece].behind <= count
        for later in range(max(0, number - found[piece].behind + 1), number):  # may still be there
            other = later % count
            first, last = found[other].offset_bytes, found[other].offset_bytes + spans[other]
            assert stop <= first or last <= start


def test_a_piece_larger_than_the_buffer_is_refused() -> None:
    with pytest.raises(ValueError, match="does not fit"):
        seats([4, 9], 8)


@settings(deadline=None, max_examples=25)
@given(
    sizes=st.lists(st.integers(1, 5 * PAGE_BYTES), min_size=1, max_size=9),
    pages=st.integers(7, 20),
    skip=st.integers(0, 3),
)
def test_every_piece_has_its_bytes_in_every_round(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], pages: int, skip: int
) -> None:
    path, content = write(tmp_path_factory.mktemp("ring"), sum(sizes) + 100)
    parts = parts_of(path, sizes)
    ring = DiskRing(alone(parts), pages * PAGE_BYTES)
    ring.start()
    try:
        for _ in range(ROUNDS):
            for piece in range(0, len(parts), 1 + skip):  # those between are released unused
                ring.acquire(piece)
                (array,) = ring.arrays(piece)
                assert array.tobytes() == expected(content, parts[piece])
                array[:] = 0xAB  # poison: what is read again has to come from the file again
                ring.release()
    finally:
        ring.close()


@settings(deadline=None, max_examples=25)
@given(
    pieces=st.lists(st.lists(st.integers(1, 3 * PAGE_BYTES), min_size=1, max_size=4), min_size=1, max_size=9),
    pages=st.integers(20, 40),
)
def test_all_parts_of_a_piece_come_together(
    tmp_path_factory: pytest.TempPathFactory, pieces: list[list[int]], pages: int
) -> None:
    sizes = [size for piece in pieces for size in piece]
    path, content = write(tmp_path_factory.mktemp("ring"), sum(sizes) + 100)
    rest = iter(reversed(parts_of(path, sizes)))  # so that parts do not lie in the order they are used in
    parts = [[next(rest) for _ in piece] for piece in pieces]
    ring = DiskRing(parts, pages * PAGE_BYTES)
    ring.start()
    try:
        for _ in range(ROUNDS):
            for piece, expect in enumerate(parts):
                ring.acquire(piece)
                arrays = ring.arrays(piece)
                assert [array.tobytes() for array in arrays] == [expected(content, part) for part in expect]
                for array in arrays:
                    array[:] = 0xAB
                ring.release()
    finally:
        ring.close()


def test_an_acquired_piece_stays_until_it_is_released(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With room for two pieces, the readers get exactly one ahead, however long the first is held."""
    read: list[int] = []
    real, two = disk_ring._Files.read, threading.Event()

    def watched(self, part, target):  # type: ignore[no-untyped-def]
        real(self, part, target)
        read.append(part.offset)
        if len(read) == 2:
            two.set()

    monkeypatch.setattr(disk_ring._Files, "read", watched)
    path, content = write(tmp_path, 8 * PAGE_BYTES)
    parts = parts_of(path, [PAGE_BYTES] * 8, first=0)
    ring = DiskRing(alone(parts), 2 * PAGE_BYTES)
    ring.start()
    ring.acquire(0)
    assert two.wait(10)
    ring.acquire(0)
    assert sorted(read) == [0, PAGE_BYTES]
    assert ring.arrays(0)[0].tobytes() == expected(content, parts[0])
    ring.close()
    assert sorted(read) == [0, PAGE_BYTES]


@pytest.mark.parametrize("direct", [True, False])
def test_both_ways_of_reading_give_the_same_bytes(
    direct: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not direct:
        monkeypatch.delattr(os, "O_DIRECT", raising=False)
    path, content = write(tmp_path, 5 * PAGE_BYTES + 13)  # the last page is not whole
    parts = parts_of(path, [3 * PAGE_BYTES + 5, 2 * PAGE_BYTES - 19], first=27)
    assert parts[-1].offset + parts[-1].nbytes == content.size
    ring = DiskRing(alone(parts), 8 * PAGE_BYTES)
    ring.start()
    for piece, part in enumerate(parts):
        ring.acquire(piece)
        assert ring.arrays(piece)[0].tobytes() == expected(content, part)
        ring.release()
    ring.close()


def test_a_file_that_shrinks_while_running_is_an_error_not_a_hang(tmp_path: Path) -> None:
    path, _ = write(tmp_path, 64 * PAGE_BYTES)
    parts = parts_of(path, [8 * PAGE_BYTES - 40] * 8)
    ring = DiskRing(alone(parts), 20 * PAGE_BYTES)
    ring.start()
    ring.acquire(0)
    os.truncate(path, 30 * PAGE_BYTES)
    with pytest.raises(OffloadError, match=r"weights: has become shorter.* must stay as it was"):
        walk(ring, [1, 2, 3, 4, 5, 6, 7, 0, 1])
    with pytest.raises(OffloadError, match="shorter"):
        ring.acquire(0)
    ring.close()


def test_an_error_of_the_disk_is_told_with_its_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> int:
        raise OSError(errno.EIO, "Input/output error")

    ring = DiskRing(alone(parts_of(write(tmp_path, 200)[0], [100])), 2 * PAGE_BYTES)
    monkeypatch.setattr(os, "preadv", fail)
    ring.start()
    with pytest.raises(OffloadError, match="weights: cannot be read: Input/output error"):
        ring.acquire(0)
    ring.close()


def test_a_file_that_is_gone_is_an_error(tmp_path: Path) -> None:
    path, _ = write(tmp_path, 200)
    ring = DiskRing(alone(parts_of(path, [100])), 2 * PAGE_BYTES)
    path.unlink()
    ring.start()
    with pytest.raises(OffloadError, match="weights: cannot be read: No such file"):
        ring.acquire(0)
    ring.close()


def test_close_ends_the_threads_and_whoever_waits(tmp_path: Path) -> None:
    path, _ = write(tmp_path, 64 * PAGE_BYTES)
    before = threading.active_count()
    ring = DiskRing(alone(parts_of(path, [PAGE_BYTES] * 32)), 8 * PAGE_BYTES)
    ring.start()
    ring.acquire(0)
    ring.close()
    ring.close()
    assert threading.active_count() == before
    with pytest.raises(OffloadError, match="closed"):
        walk(ring, range(1, 32))


def test_a_ring_that_was_never_started_can_be_closed(tmp_path: Path) -> None:
    path, _ = write(tmp_path, 4 * PAGE_BYTES)
    DiskRing(alone(parts_of(path, [100])), 2 * PAGE_BYTES).close()


@given(rows=st.integers(1, 500), row_bytes=st.integers(1, 100), most=st.integers(1, 1000))
def test_rows_are_cut_into_near_equal_ranges(rows: int, row_bytes: int, most: int) -> None:
    ranges = list(split_rows(rows, row_bytes, most))
    assert ranges[0][0] == 0
    assert ranges[-1][1] == rows
    assert all(stop == start for (_, stop), (start, _) in pairwise(ranges))
    counts = {stop - start for start, stop in ranges}
    assert max(counts) * row_bytes <= max(most, row_bytes)
    assert max(counts) - min(counts) <= 1
