"""Host columns as a plan keeps them: those that it has, in RAM or in their files."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from offload.plan.plan import HostTier, LinearPlacement
from offload.spec.linear import WeightFormat
from offload.storage.stored_weight import StoredWeight
from offload.weights.host_columns import host_columns, load_host_columns
from tests.device.support import in_file, linear, place

K, N = 48, 64
PLACEMENTS: dict[str, LinearPlacement] = {
    "some": place(linear("some", "g", K, N), 0.25, 0.25),
    "all": place(linear("all", "g", K, N), 0, 0),
    "none": place(linear("none", "g", K, N), 0.5, 0.5),
    "file": replace(place(linear("file", "g", K, N), 0.5, 0), tier=HostTier.FILE),
}


@pytest.fixture
def weights(tmp_path: Path) -> dict[str, StoredWeight]:
    values = np.random.default_rng(0).standard_normal((N, K)).astype(np.float16)
    spec = PLACEMENTS["all"].linear
    return in_file(
        {name: StoredWeight.dense(values, spec.format, spec.layout) for name in PLACEMENTS}, tmp_path / "weights"
    )


@pytest.mark.parametrize("into_ram", [False, True])
def test_only_columns_that_the_plan_reads_are_read(weights: dict[str, StoredWeight], into_ram: bool) -> None:
    told: list[int] = []
    found = load_host_columns(tuple(PLACEMENTS.values()), weights, into_ram, told.append)
    starts = {"some": N // 2, "all": 0, "file": N // 2}
    assert {name: weight.in_file for name, weight in found.items()} == {
        "some": not into_ram,
        "all": not into_ram,
        "file": True,
    }
    for name, weight in found.items():
        expected = weights[name].arrays[0].array()[starts[name] :]
        np.testing.assert_array_equal(weight.arrays[0].array(), expected)
    assert sum(told) == (N // 2 + N) * K * 2 * into_ram
    assert all(weight.in_file for weight in host_columns(PLACEMENTS.values(), weights).values())


def test_what_is_quantised_on_load_is_in_ram_whatever_its_tier(weights: dict[str, StoredWeight]) -> None:
    int8 = {name: replace(p, host_format=WeightFormat.INT8) for name, p in PLACEMENTS.items()}
    found = load_host_columns(tuple(int8.values()), weights, False, lambda nbytes: None)
    assert {name: (weight.storage, weight.in_file) for name, weight in found.items()} == {
        name: (int8[name].host_blocks, False) for name in ("some", "all", "file")
    }
