"""Strangers' files write text to a terminal, and nothing that a terminal obeys."""

import os
import pty
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from hybrid.errors import ModelFileError
from hybrid.show import report
from hybrid.show.console import emit, say, say_bug
from offload.errors import OverBudgetError
from offload.printable import printable
from tests.fakes import small_plan, train_tokenizer

ROOT = Path(__file__).parents[2]
CLEAR, TITLE = "\x1b[2J", "\x1b]0;mine\x07"


@pytest.mark.parametrize("number", [*range(0x20), *range(0x7F, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A)])
def test_what_terminals_obey_is_dropped(number: int) -> None:
    shown = chr(number) if chr(number) in "\n\t" else ""
    assert printable(f"a{chr(number)}b") == f"a{shown}b"


def test_text_is_left_as_it_is() -> None:
    text = "naïve 日本 עברית \u200f\u200d 👩‍🚀 \xa0\xad\n\ttab"
    assert printable(text) == text
    assert printable("not \udcff UTF-8 \ud83d") == "not \ufffd UTF-8 \ufffd"


def test_completions_come_as_they_are_but_to_terminals(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    emit(f"{CLEAR}red\r\n")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    for piece in (f"{CLEAR}red\r\n", "\x1b", "[2J"):
        emit(piece)
    assert capsys.readouterr().out == f"{CLEAR}red\r\n" + "[2Jred\n" + "[2J"


def test_notes_errors_and_plans_are_clean_wherever_they_go(capsys: pytest.CaptureFixture[str]) -> None:
    say(f"note: {TITLE}{CLEAR}\n\tmore")
    assert capsys.readouterr().err == "note: ]0;mine[2J\n\tmore\n"
    assert str(ModelFileError(f"{CLEAR}x: no such folder")) == "[2Jx: no such folder"
    assert str(OverBudgetError(1, 2, 3, CLEAR)).startswith("out of [2J: ")
    plan = small_plan()
    linear = replace(plan.placements[0].linear, name=CLEAR, kind=f"gate{CLEAR}", layer=TITLE)
    hostile = replace(
        plan,
        model=f"tiny{CLEAR}",
        placements=(replace(plan.placements[0], linear=linear, reason=CLEAR),),
        notes=(CLEAR,),
    )
    for each_linear in (False, True):
        text = report.plan_text(hostile, None, 100, each_linear)
        assert "tiny[2J" in text
        assert printable(text) == text


def test_bugs_are_told_cleanly(capsys: pytest.CaptureFixture[str]) -> None:
    say_bug(KeyError, KeyError("x"), None)
    say_bug(ValueError, ValueError(f"no such tensor {CLEAR}"), None)
    assert capsys.readouterr().err == "KeyError: 'x'\nValueError: no such tensor [2J\n"


def test_a_run_on_a_terminal(tmp_path: Path) -> None:
    model = train_tokenizer(tmp_path / "model")
    code = f"from tests.fakes import main; main({str(model)!r}, ' the \\x1b[2J cat')"
    ours, theirs = pty.openpty()
    try:
        command = [sys.executable, "-c", code, "run", "--model", str(model), "once"]
        assert subprocess.run(command, cwd=ROOT, stdout=theirs, stderr=subprocess.PIPE).returncode == 0
        shown = os.read(ours, 10_000)
    finally:
        os.close(ours)
        os.close(theirs)
    assert b"[2J cat" in shown
    assert b"\x1b" not in shown
