"""Command lines as people type them: help pages, what was meant, and who says so."""

import json
import os
import pty
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

from hybrid.cli import main as cli
from hybrid.cli import options
from hybrid.cli.command_line import nearest
from hybrid.cli.help_page import help_page
from tests.fakes import FakeEngine, engine_modules, train_tokenizer

ROOT = Path(__file__).parents[3]
COMMANDS = ("run", "plan", "chat", "tune", "doctor")


def failure(capsys: pytest.CaptureFixture[str], *arguments: str, program: str = "hybrid") -> str:
    """The one line of a command line that is refused."""
    assert (cli.main if program == "hybrid" else cli.main_run)(arguments) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    return err.rstrip("\n")


@pytest.mark.parametrize(
    ("program", "arguments", "quoted"),
    [
        ("hybrid-run", "Why is the sky blue", 'hybrid-run "Why is the sky blue"'),
        ("hybrid-run", "--cuda 0 Why is --seed=1 it --stop it", 'hybrid-run --cuda 0 --seed=1 --stop it "Why is it"'),
        ("hybrid-run", "What\\'s 5\\$", "hybrid-run " + shlex.quote("What's 5$")),
        ("hybrid", "run two words --raw", 'hybrid run --raw "two words"'),
        ("hybrid", "Why is it --raw", 'hybrid run --raw "Why is it"'),
        ("hybrid", "'Why is it'", 'hybrid run "Why is it"'),
    ],
)
def test_a_prompt_that_was_not_quoted(
    program: str, arguments: str, quoted: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert failure(capsys, *shlex.split(arguments), program=program).endswith(f": {quoted}")


@pytest.mark.parametrize(
    ("arguments", "meant"),
    [
        ("rum a", "run"),
        ("docter", "doctor"),
        ("run --cudda 6 a", "--cuda"),
        ("run --temp 1 a", "--temperature"),
        ("chat --max-token 4", "--max-tokens"),
        ("plan --halp", "--help"),
    ],
)
def test_the_nearest_name_is_offered(arguments: str, meant: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert f"; did you mean {meant}?; see hybrid" in failure(capsys, *arguments.split())


def test_a_flag_of_another_command_is_placed(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--max-tokens; it is one of run and chat; " in failure(capsys, "plan", "--max-tokens", "4")
    assert "--draw; it is one of plan; " in failure(capsys, "--draw", "x.png")
    assert "no such option: --nonsense; see " in failure(capsys, "plan", "--nonsense")


def test_names() -> None:
    assert nearest("--sys", ["--system", "--seed"]) == "--system"
    assert nearest("--t", ["--top-k", "--top-p"]) == ""
    assert nearest("xyzzy", COMMANDS) == ""


def test_errors_name_the_command_that_was_typed(capsys: pytest.CaptureFixture[str]) -> None:
    assert failure(capsys, "--model", "nowhere", "a", program="hybrid-run").startswith("hybrid-run: error: nowhere: ")
    assert failure(capsys, "run", "--model", "nowhere", "a").startswith("hybrid run: error: nowhere: ")
    assert failure(capsys, "plan", "--model", "nowhere").startswith("hybrid plan: error: nowhere: ")
    assert failure(capsys, "run").endswith("; see hybrid run --help")
    assert failure(capsys, program="hybrid-run").endswith("; see hybrid-run --help")


@pytest.mark.parametrize(
    "arguments",
    [
        "--model nowhere a",
        "--cuda x a",
        "--ram x a",
        "--device gpu a",
        "--device cpu --cuda 6 a",
        "--host-dtype fp4 a",
        "--activations fp8 a",
        "--machine nowhere a",
        "--top-p 2 a",
        "--chat-template nowhere.jinja a",
        "--config nowhere.toml a",
        "--beams 2 --n 2 a",
        "--temperature 0 --n 2 a",
        "--stats nowhere/stats.json a",
        "--stats stats.txt a",
    ],
)
def test_what_cannot_be_is_said_before_anything_long_is_imported(
    arguments: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for module in ("hybrid.cli.completion", "hybrid.show.report", "hybrid.text.text_model"):
        monkeypatch.setitem(sys.modules, module, None)  # importing it fails
    failure(capsys, *arguments.split(), program="hybrid-run")


def pages() -> dict[str, Any]:
    """A context of every command, as typer makes it."""
    group = typer.main.get_command(cli._hybrid())
    top = group.make_context("hybrid", [], resilient_parsing=True)
    commands = group.commands  # type: ignore[attr-defined]
    made = {name: commands[name].make_context(name, [], parent=top, resilient_parsing=True) for name in COMMANDS}
    return {"": top, **made}


@pytest.mark.parametrize("columns", [40, 60, 80, 140])
def test_help_pages_fit(columns: int) -> None:
    for context in pages().values():
        for line in help_page(context, columns).split("\n"):
            assert len(line) <= columns or len(line.strip(" \\").split()) == 1, line  # names and such are not broken


def test_a_flag_is_in_one_group_at_most() -> None:
    flags = {flag for context in pages().values() for p in context.command.params for flag in p.opts if flag[0] == "-"}
    grouped = [flag for names in options.GROUPS.values() for flag in names]
    assert len(grouped) == len(set(grouped))
    assert set(grouped) <= flags


@pytest.mark.parametrize("flag", ["-h", "--help"])
@pytest.mark.parametrize("command", [[], *([name] for name in COMMANDS)])
def test_help_has_examples_everywhere(command: list[str], flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*command, flag]) == 0
    out, err = capsys.readouterr()
    assert "\nExamples\n  " in out
    assert err == ""


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, module in engine_modules(FakeEngine([5] * 4)).items():
        monkeypatch.setitem(sys.modules, name, module)
    return train_tokenizer(tmp_path / "model")


def test_stats_in_a_file_are_json_and_nothing_else(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "stats.json"
    path.write_text("what was there")
    run = ["run", "--model", str(model), "--stats", str(path), "--op-times", "--verbose"]
    assert cli.main([*run, "a"]) == 0
    assert json.loads(path.read_text())["generated_tokens"] == 4
    assert " · decode 4 tokens" in capsys.readouterr().err  # people are told as ever
    assert cli.main([*run, "--n", "2", "--temperature", "1e-9", "a"]) == 0
    assert [stats["generated_tokens"] for stats in json.loads(path.read_text())] == [4, 4]
    assert [file.name for file in tmp_path.iterdir() if file.is_file()] == ["stats.json"]


def test_a_terminal_is_written_to_in_whole_words(tmp_path: Path) -> None:
    model = train_tokenizer(tmp_path / "model")
    text = " the cat sat on the mat" * 5
    code = f"from tests.fakes import main; main({str(model)!r}, {text!r}, context_tokens=500)"
    terminal, side = pty.openpty()
    environment = {**os.environ, "TERM": "dumb", "COLUMNS": "40"}
    line = [sys.executable, "-c", code, "run", "--model", str(model), "x"]
    process = subprocess.Popen(line, cwd=ROOT, stdin=side, stdout=side, stderr=side, env=environment)
    os.close(side)
    shown = b""
    while True:
        try:
            part = os.read(terminal, 4096)
        except OSError:  # how Linux says that nobody has it open any more
            break
        shown += part
    os.close(terminal)
    assert process.wait() == 0
    lines = shown.decode().replace("\r", "").split("\n")
    assert max(map(len, lines)) <= 40
    story = [line for line in lines if line.strip().split(" ")[0] in text.split()]
    assert " ".join(" ".join(story).split()) == text.strip()
    assert len(story) == 3
