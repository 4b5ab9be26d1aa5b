"""Sizes and durations as people write and read them."""

import ast
import contextlib
import re
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from offload.errors import BudgetError
from offload.spec.units import GIB, MIB, counted, format_bytes, format_seconds, parse_size


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [
        ("6", 6 * GIB),
        ("0.5", GIB // 2),
        (".5", GIB // 2),
        ("6GiB", 6 * GIB),
        ("6 GB", 6 * GIB),
        (" 6g ", 6 * GIB),
        ("1.5gib", 3 * GIB // 2),
        ("800MiB", 800 * MIB),
        ("800mb", 800 * MIB),
        ("0.5M", MIB // 2),
        ("0", 0),
        ("0MiB", 0),
        ("007", 7 * GIB),
    ],
)
def test_sizes_that_can_be_read(text: str, nbytes: int) -> None:
    assert parse_size(text) == nbytes


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "six",
        "GiB",
        "-6",
        "+6",
        "6.",
        ".",
        "6..5",
        "6 7",
        "6TB",
        "6KiB",
        "6B",
        "1e3",
        "0x6",
        "6,5",
        "٦",
        "nan",
        "inf",
    ],
)
def test_sizes_that_cannot(text: str) -> None:
    with pytest.raises(BudgetError, match="cannot read the size"):
        parse_size(text)


@pytest.mark.parametrize("text", ["1073741824", "9" * 400, "1073741824GiB", "1099511627776M"])
def test_sizes_beyond_any_device(text: str) -> None:
    with pytest.raises(BudgetError, match="beyond any device"):
        parse_size(text)


@given(text=st.text(max_size=12))
def test_any_text_is_a_size_or_an_error_of_ours(text: str) -> None:
    with contextlib.suppress(BudgetError):
        assert 0 <= parse_size(text) < 1 << 60


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.00 KiB"),
        (MIB, "1.00 MiB"),
        (6 * GIB, "6.00 GiB"),
        (190 * MIB, "190 MiB"),
        (100 * GIB, "100 GiB"),
        (99.5 * GIB, "99.50 GiB"),
        (1023.4 * MIB, "1023 MiB"),
        (1023.6 * MIB, "1.00 GiB"),
        (MIB - 1, "1.00 MiB"),
    ],
)
def test_sizes_for_people(nbytes: float, text: str) -> None:
    assert format_bytes(nbytes) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(2.5, "2.5 s"), (0.0123, "12.3 ms"), (0.001, "1 ms"), (8e-6, "8 µs"), (0, "0 µs")]
)
def test_durations_for_people(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


@pytest.mark.parametrize(("unit", "above", "below"), [(GIB, "1.00 GiB", "1023 MiB"), (MIB, "1.00 MiB", "1023 KiB")])
def test_what_would_be_rounded_to_1024_is_one_of_the_next_unit(unit: int, above: str, below: str) -> None:
    assert format_bytes(unit - unit // 2048) == above
    assert format_bytes(unit - unit // 2048 - 1) == below


def test_singular_and_plural() -> None:
    assert [counted(number, "token") for number in (0, 1, 2, 2000)] == [
        "0 tokens",
        "1 token",
        "2 tokens",
        "2,000 tokens",
    ]
    assert [counted(number, "tensor is", "tensors are") for number in (1, 2)] == ["1 tensor is", "2 tensors are"]


_THINGS = re.compile(
    r" (attribute|byte|column|CPU|dimension|file|GPU|input|layer|Linear|message|node|output|position|problem|row"
    r"|tensor|thread|token)s\b"
)


def test_no_plural_is_written_behind_a_number_that_may_be_1() -> None:
    files = sorted((Path(__file__).parents[3] / "hybrid").rglob("*.py"))
    trees = [(file.name, ast.parse(file.read_text())) for file in files]
    texts = [(name, node) for name, tree in trees for node in ast.walk(tree) if isinstance(node, ast.JoinedStr)]
    plurals = [
        f"{name}:{text.lineno}"
        for name, text in texts
        for value, after in pairwise(text.values)
        if isinstance(value, ast.FormattedValue) and isinstance(after, ast.Constant) and _THINGS.match(after.value)
        if not _is_never_1(value)
    ]
    assert len(texts) > 500
    assert plurals == []


def _is_never_1(value: ast.FormattedValue) -> bool:
    """A constant, or a number with decimals."""
    spec = ast.unparse(value.format_spec).strip("f'\"") if value.format_spec else ""
    return "." in spec or ast.unparse(value.value).isupper()
