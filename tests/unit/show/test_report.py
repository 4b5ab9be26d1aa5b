"""Tables of plans: rows of layers, cells, rates."""

from dataclasses import replace

import pytest

from hybrid.show import report
from tests.fakes import placement, small_plan


def test_rounding_to_tiles_does_not_split_a_row() -> None:
    layers = [placement(str(layer), "q_proj", 48 + layer % 3, 0) for layer in range(22)]
    plan = replace(small_plan(), placements=(*layers, placement("22", "q_proj", 0, 0)))
    assert [label for label, _ in report.layer_rows(plan)] == ["0-21", "22"]


@pytest.mark.parametrize(
    ("columns", "text"),
    [
        ((10, 0, 0), "VRAM"),
        ((0, 0, 10), "host"),
        ((5, 5, 0), "50% VRAM\n50% streamed"),
        ((1, 0, 999), "1% VRAM\n99% host"),
    ],
)
def test_cells(columns: tuple[int, int, int], text: str) -> None:
    assert report.cell_text(columns) == text


@pytest.mark.parametrize(
    ("rate", "text"),
    [
        (None, "-"),
        (0.0, "0.00 tokens/s"),
        (0.00256, "0.0026 tokens/s"),
        (0.0999, "0.10 tokens/s"),
        (0.456, "0.46 tokens/s"),
        (12.34, "12.3 tokens/s"),
        (4321.0, "4,321 tokens/s"),
    ],
)
def test_rates(rate: float | None, text: str) -> None:
    assert report.rate(rate) == text
