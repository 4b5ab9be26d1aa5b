"""Text in lines that fit a terminal."""

import shlex

import pytest

from hybrid.show.wrapping import WordWrap, cells, fold, fold_command, whole_parts

STATUS = "demo · CPU only (no usable GPU: no NVIDIA driver found) · context 512 · predicted 1,344 tokens/s"


@pytest.mark.parametrize(
    ("width", "lines"),
    [
        (100, [STATUS]),
        (
            60,
            [
                "demo · CPU only (no usable GPU: no NVIDIA driver found) ·",
                "  context 512 · predicted 1,344 tokens/s",
            ],
        ),
        (
            40,
            [
                "demo ·",
                "  CPU only (no usable GPU: no NVIDIA",
                "  driver found) · context 512 ·",
                "  predicted 1,344 tokens/s",
            ],
        ),
    ],
)
def test_status_lines_are_broken_between_their_parts(width: int, lines: list[str]) -> None:
    assert fold(STATUS, width).split("\n") == lines


def test_lines_that_fit_stay_as_they_are_and_words_stay_whole() -> None:
    table = "a    b\n──────\n1    2"
    assert fold(table, 6) == table
    assert fold(f"note: {'x' * 50} is long", 40) == f"note:\n  {'x' * 50}\n  is long"
    assert fold("note: 猫は座った 猫は座った", 20) == "note: 猫は座った\n  猫は座った"


@pytest.mark.parametrize("width", [40, 60, 80])
def test_a_command_can_be_copied(width: int) -> None:
    line = """hybrid-run --model ~/models/mistral-7b --cuda 0 --ram 4 "At the disk's rate:" > out.txt"""
    folded = fold_command(line, width, "  ")
    assert shlex.split(folded.replace("\\\n", "")) == shlex.split(line)
    assert max(map(len, folded.split("\n"))) <= width


def wrapped(text: str, width: int, piece: int = 3) -> str:
    wrap = WordWrap(lambda: width)
    return "".join(wrap.feed(text[start : start + piece]) for start in range(0, len(text), piece)) + wrap.flush()


def test_pieces_are_broken_at_words() -> None:
    text = "One day, a girl\n\n    def f(x):\n\treturn x\n" + "猫は座った" * 8 + " end " + "y" * 50
    for width in (40, 60, 80, 140):
        for piece in (1, 3, 1000):
            shown = wrapped(text, width, piece)
            assert all(cells(line) <= width for line in shown.split("\n"))
            assert shown.replace("\n", "").replace(" ", "") == "".join(text.split())
    assert wrapped("the cat sat on the mat", 10) == "the cat\nsat on the\nmat"
    assert wrapped("a\n    b", 10) == "a\n    b"  # code keeps its indentation
    assert wrapped("naïve", 3) == "naï\nve"  # no room for it anywhere


def test_a_width_that_changes_in_mid_text() -> None:
    width = 40
    wrap = WordWrap(lambda: width)
    shown = wrap.feed("the cat sat on the mat once more and ")
    width = 20
    assert shown + wrap.feed("then it slept ") + wrap.flush() == "the cat sat on the mat once more and\nthen it slept"


@pytest.mark.parametrize("width", range(40, 90))
def test_a_status_line_loses_whole_parts_from_its_end(width: int) -> None:
    parts = ["12 tokens, 3.14 tokens/s", "VRAM 5.91 GiB", "GPU 87% busy", "bus 11.20 GiB/s in, 0.01 GiB/s out"]
    shown = whole_parts(" · ".join(parts), width)
    kept = shown.split(" · ")
    assert kept == parts[: len(kept)]
    assert len(shown) <= width
    assert len(kept) == len(parts) or len(" · ".join(parts[: len(kept) + 1])) > width


def test_a_first_part_that_is_too_wide_is_cut() -> None:
    assert whole_parts("x" * 50 + " · y", 40) == "x" * 40
    assert whole_parts("日本語 · y", 5) == "日本"
