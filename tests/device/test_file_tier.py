"""Host columns that stay in their files, beside every kind of device column."""

import os
from collections.abc import Mapping
from contextlib import closing
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from offload.errors import OffloadError
from offload.host.backend import NumbaBackend
from offload.host.base import HostColumns
from offload.plan.plan import HostTier, LinearPlacement
from offload.plan.ram_tiers import PAGE_BYTES, READ_AHEAD, ram_bytes
from offload.run.file_tier import FileTier
from offload.run.runner import LinearRunner
from offload.spec.linear import Activations, BlockFormat, ColumnRange, Layout, WeightFormat
from offload.storage.stored_array import StoredArray
from offload.storage.stored_weight import StoredWeight
from offload.storage.weight_file import FileRange, WeightFile
from offload.weights.disk_ring import DiskRing
from offload.weights.host_columns import host_columns
from tests.device.support import NumpyHost, blocks_linear, in_file, in_one_block, make_plan, place
from tests.device.test_runner import CHUNK, FP16, PLACEMENTS, SLOT_BYTES, SLOTS, Model, placed, run_steps
from tests.quantised import random_weight

_FILE_HEADER_BYTES = 1021  # odd, so that no element is aligned


@pytest.fixture(autouse=True)
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Released memory is spoilt at once, so that a use of it afterwards is seen."""
    release = DiskRing.release

    def spoil_and_release(ring: DiskRing) -> None:
        for array in ring.arrays(ring._released % len(ring._pieces)):
            array[:] = 0x7E  # NaN in fp16, and huge in the others
        release(ring)

    monkeypatch.setattr(DiskRing, "release", spoil_and_release)


def in_a_file(model: Model, path: Path) -> dict[str, StoredWeight]:
    return in_file(model.weights, path, _FILE_HEADER_BYTES)


def file_runner(
    model: Model, placements: list[LinearPlacement], device: Any, weights: Mapping[str, StoredWeight]
) -> LinearRunner:
    plan = replace(make_plan(placements, CHUNK, SLOTS, SLOT_BYTES), read_ahead_bytes=12 * PAGE_BYTES)
    return LinearRunner(model.names, plan, weights, device, NumpyHost())


def all_in_files(placements: list[LinearPlacement]) -> list[LinearPlacement]:
    return [replace(placement, tier=HostTier.FILE) for placement in placements]


@pytest.mark.parametrize(
    "device", ["simulated", "emulated cupy"], indirect=True
)  # what it multiplies with is no matter
@pytest.mark.parametrize("where", [name for name in PLACEMENTS if name not in ("all resident", "all streamed")])
@pytest.mark.parametrize(
    ("layout", "piece_bytes"), [(Layout.KN, 1 << 20), (Layout.NK, 900)]
)  # whole Linears, and several pieces of each
def test_placements(
    device: Any, where: str, layout: Layout, piece_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("offload.run.file_tier.PIECE_BYTES", piece_bytes)
    model = Model(FP16, layout)
    weights = in_a_file(model, tmp_path / "weights")
    runner = file_runner(model, all_in_files(placed(model, where)), device, weights)
    run_steps(model, runner)
    runner.close()


def test_some_linears_of_a_group_in_files(device: Any, tmp_path: Path) -> None:
    model = Model(FP16)
    weights = in_a_file(model, tmp_path / "weights")
    placements = [
        replace(placement, tier=HostTier.FILE if placement.linear.name[0] in "kgh" else HostTier.RAM)
        for placement in placed(model, "three ways")
    ]
    runner = file_runner(model, placements, device, weights)
    run_steps(model, runner)
    runner.close()


def test_prefill_and_decode_share_what_is_read_ahead(device: Any, tmp_path: Path) -> None:
    model = Model(FP16)
    mapped = in_a_file(model, tmp_path / "weights")
    in_files = {spec.name for spec in model.linears if spec.name[0] in "kgh"}
    placements = [
        replace(place(spec, 0.25, 0.25), tier=HostTier.FILE)
        if spec.name in in_files
        else place(spec, 0.25, 0.25, 0.5)  # no host columns in prefill
        for spec in model.linears
    ]
    plan = make_plan(placements, CHUNK, SLOTS, SLOT_BYTES, prefill_tokens=4)
    plan = replace(plan, read_ahead_bytes=12 * PAGE_BYTES)
    host_weights = in_one_block(model.weights) | {name: mapped[name] for name in in_files}
    host_weights = host_columns(placements, host_weights)
    runner = LinearRunner(model.names, plan, mapped, device, NumpyHost(), host_weights=host_weights)
    assert runner.warning == ""
    for tokens in (17, 1, 4, 3, 20, 1):
        for level in range(len(model.levels)):
            model.run(runner, level, tokens)
    runner.close()


def test_weights_that_are_in_memory_already_are_multiplied_there(device: Any) -> None:
    model = Model(FP16)
    runner = file_runner(model, all_in_files(placed(model, "half resident")), device, model.weights)
    run_steps(model, runner)
    runner.close()


def test_steps_go_on_after_one_that_was_broken_off(device: Any, tmp_path: Path) -> None:
    model = Model(FP16)
    weights = in_a_file(model, tmp_path / "weights")
    runner = file_runner(model, all_in_files(placed(model, "half resident")), device, weights)
    for level in (0, 1, 0, 1, 2, 4, 5):  # not to the end, then from the start, and one left out
        model.run(runner, level, 3)
    run_steps(model, runner)
    runner.close()


def test_a_step_fails_when_the_file_shrinks_and_so_does_the_next(device: Any, tmp_path: Path) -> None:
    model = Model(FP16)
    weights = in_a_file(model, tmp_path / "weights")
    runner = file_runner(model, all_in_files(placed(model, "half resident")), device, weights)
    run_steps(model, runner)
    os.truncate(tmp_path / "weights", PAGE_BYTES)
    for _ in range(2):
        with pytest.raises(OffloadError, match="has become shorter"):
            run_steps(model, runner)
    runner.close()


def blocks_in_a_file(weight: StoredWeight, path: Path, scales_in_ram: bool = False) -> StoredWeight:
    stored = in_file({"w": weight}, path, _FILE_HEADER_BYTES)["w"]
    return replace(stored, arrays=(stored.arrays[0], *weight.arrays[1:])) if scales_in_ram else stored


def placed_blocks(
    weight: StoredWeight, host_start: int = 0, activations: Activations = Activations.FLOAT
) -> LinearPlacement:
    n = weight.out_features
    spec = blocks_linear("w", "w", weight.in_features, n, weight.blocks, activations)
    ranges = ColumnRange(0, host_start), ColumnRange(host_start, host_start), ColumnRange(host_start, n)
    return LinearPlacement(spec, *ranges, "test", weight.storage.format, HostTier.FILE)


@pytest.mark.parametrize("activations", list(Activations))
@pytest.mark.parametrize("zero_points", [False, True])
@pytest.mark.parametrize(("weight_format", "block"), [(WeightFormat.INT8, 16), (WeightFormat.INT4, 32)])
def test_blocks_are_multiplied_as_in_ram(
    weight_format: WeightFormat,
    block: int,
    zero_points: bool,
    activations: Activations,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """To the bit: whole and in several pieces, of all columns and of the last, for steps of several sizes in turns."""
    weight = random_weight(207, 100, weight_format, block, np.float16, zero_points)
    backend = NumbaBackend(2)
    for piece_bytes, host_start, scales_in_ram in ((1 << 20, 0, False), (1500, 16, False), (1500, 0, True)):
        monkeypatch.setattr("offload.run.file_tier.PIECE_BYTES", piece_bytes)
        placement = placed_blocks(weight, host_start, activations)
        mapped = blocks_in_a_file(weight, tmp_path / "weights", scales_in_ram)
        in_ram = backend.group([HostColumns(weight.columns(host_start, 207), host_start, 207, activations)])
        columns = host_columns([placement], {"w": mapped})
        files = FileTier({"w": [placement]}, columns, backend, 12 * PAGE_BYTES)
        with closing(files):
            files.start()
            for rows in (1, 1, 5, 30, 1):
                x = np.random.default_rng(rows).standard_normal((rows, 100), np.float32)
                y, expected = (np.full((rows, 207), np.nan, np.float32) for _ in range(2))
                files.groups["w"].multiply(x, [y])
                in_ram.multiply(x, [expected])
                np.testing.assert_array_equal(y, expected)


@pytest.mark.parametrize("zero_points", [False, True])
@pytest.mark.parametrize(("n", "k"), [(300_000, 2048), (9_000, 16), (5, 1 << 25), (3, 320)])
def test_the_planned_buffer_holds_several_pieces_of_blocks(
    n: int, k: int, zero_points: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or all of them. No piece is read here, so nothing lies in the file."""
    storage, offset, arrays = BlockFormat(4, 16, WeightFormat.FP32, zero_points), 1001, []
    with (tmp_path / "weights").open("wb") as file:
        file.truncate(offset + n * storage.column_bytes(k))
    there = WeightFile.at(tmp_path / "weights")
    for spec in storage.arrays(k, n):
        nbytes = spec.dtype.itemsize * prod(spec.shape)
        arrays.append(StoredArray.at(FileRange(there, offset, nbytes), spec.dtype, spec.shape))
        offset += nbytes
    weight = StoredWeight(storage, k, tuple(arrays))
    placement = placed_blocks(weight)
    asked: list[tuple[list[int], int]] = []
    monkeypatch.setattr("offload.weights.disk_ring.seats", lambda spans, capacity: asked.append((spans, capacity)))
    FileTier({"w": [placement]}, {"w": weight}, NumbaBackend(2), ram_bytes([placement], {})[READ_AHEAD])
    ((spans, capacity_bytes),) = asked
    assert 8 * max(spans) <= capacity_bytes or sum(spans) <= capacity_bytes
