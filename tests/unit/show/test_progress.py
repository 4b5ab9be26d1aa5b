"""The line that tells how far something is: what it says, that it fits, and that it is gone afterwards."""

import io
import os

import pytest

from hybrid.show import progress
from hybrid.show.console import terminal_size
from hybrid.show.progress import ProgressLine, duration
from hybrid.show.redrawn import RedrawnLines
from offload.spec.units import MIB


class Tty(io.StringIO):
    """A terminal as wide as COLUMNS says."""

    def isatty(self) -> bool:
        return True

    def last_line(self) -> str:
        """Give what was drawn last and is seen."""
        drawn = self.getvalue().rpartition("\x1b[J")[2]
        return drawn.removesuffix("\r")


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture(autouse=True)
def xterm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(progress, "_DRAW_EVERY_S", 0.0)


@pytest.mark.parametrize(
    ("columns", "line"),
    [
        (140, f"Loading weights {'━' * 20}{'┄' * 20} 50.00 MiB of 100 MiB · 5 s left · 10.00 MiB/s"),
        (80, f"Loading weights {'━' * 8}{'┄' * 9} 50.00 MiB of 100 MiB · 5 s left · 10.00 MiB/s"),
        (60, f"Loading weights {'━' * 6}{'┄' * 5} 50.00 MiB of 100 MiB · 5 s left"),
        (40, "Loading weights · 50.00 MiB of 100 MiB"),
        (20, "Loading weights"),
    ],
)
def test_what_matters_least_is_left_out_where_there_is_no_room(
    columns: int, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    file, clock = Tty(), Clock()
    with ProgressLine(file, clock=clock) as shown:
        shown.on_stage("Loading weights", 100 * MIB)
        for _ in range(5):
            clock.now_s += 1
            shown.on_bytes(10 * MIB)
        shown._show()
        assert file.last_line() == line
    assert file.last_line() == ""
    assert file.getvalue().count("\x1b[?25h") == 1  # the cursor is back
    assert "\n" not in file.getvalue()


def test_what_comes_between_two_drawings_is_one_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_DRAW_EVERY_S", 1.0)
    work = progress._Work("Loading weights", 100.0, 10.0)
    for _ in range(50):
        work.add(1.0, 10.5)
    assert len(work._samples) == 1
    work.add(1.0, 11.0)
    assert [*work._samples] == [(10.0, 0.0), (11.0, 51.0)]


def test_shares_of_everything_have_a_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    file, clock = Tty(), Clock()
    with ProgressLine(file, clock=clock) as shown:
        for step in range(4):
            shown.on_share(f"stage {step}", step / 4)
            clock.now_s += 2
        shown._show()
        assert file.last_line().startswith("stage 3 ━━━")
        assert file.last_line().endswith(" 75% · 3 s left")  # 8 s for three quarters


def test_shares_of_what_is_under_way_count_from_its_beginning() -> None:
    file, clock = Tty(), Clock()
    with ProgressLine(file, "Reading", clock) as shown:
        clock.now_s = 2
        shown.on_share("Reading", 0.25)
        assert file.last_line().endswith(" 25% · 6 s left")


def test_nothing_is_seen_of_what_is_over_before_it_matters() -> None:
    file, clock = Tty(), Clock()
    with ProgressLine(file, "Reading", clock, after_s=1.0) as shown:
        clock.now_s = 0.9
        shown.on_share("Reading", 0.5)
        assert file.getvalue() == ""
        clock.now_s = 1.1
        shown.on_share("Reading", 0.6)
        assert file.last_line().startswith("Reading ━━━")
    assert file.last_line() == ""


def test_a_stage_of_unknown_length_tells_the_time_that_went_by() -> None:
    file, clock = Tty(), Clock()
    with ProgressLine(file, clock=clock) as shown:
        shown.on_stage("Compiling kernels", 0)
        clock.now_s = 75
        shown._show()
        assert file.last_line() == "Compiling kernels · 1 min"


def test_nothing_is_written_of_a_short_while_where_nothing_can_be_redrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    for file, term in ((io.StringIO(), "xterm"), (Tty(), "dumb")):
        monkeypatch.setenv("TERM", term)
        with ProgressLine(file) as shown:
            shown.on_stage("Loading weights", 10)
            shown.on_bytes(10)
        assert file.getvalue() == ""


def test_a_long_while_is_told_in_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_FIRST_PLAIN_S", 0.0)
    file = io.StringIO()
    with ProgressLine(file, "Loading weights") as shown:
        while not file.getvalue().endswith("\n"):
            os.sched_yield()
        shown.on_stage("Preparing islands", 0)
    assert file.getvalue() == "Loading weights\n"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "1 s"), (59.4, "59 s"), (60, "1 min"), (3599, "1 h 0 min"), (7800, "2 h 10 min")]
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_lines_are_erased_from_where_they_begin() -> None:
    file = Tty()
    with RedrawnLines(file) as lines:
        lines.draw(["one", "two", "three"])
        assert file.getvalue() == "\x1b[?25l\r\x1b[Jone\ntwo\nthree\x1b[2A\r"
        lines.draw(["four"], above="one\n")
        assert file.getvalue().endswith("\x1b[?25l\r\x1b[Jone\nfour\r")
    assert file.getvalue().endswith("\x1b[?25h\r\x1b[J\r")


def test_the_size_of_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.delenv("LINES", raising=False)
    assert terminal_size(Tty()) == (80, 24)
    monkeypatch.setenv("COLUMNS", "132")
    monkeypatch.setenv("LINES", "x")
    assert terminal_size(Tty()) == (132, 24)
