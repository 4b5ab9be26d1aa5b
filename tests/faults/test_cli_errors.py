"""Mistakes of a user: one clear line on standard error, exit code 2, no traceback."""

import subprocess
import sys
from pathlib import Path

import pytest

from hybrid.cli import main as cli
from hybrid.errors import ContextFullError, DeviceUnavailableError, ModelFileError
from offload.errors import BudgetError, OutOfDeviceMemoryError
from tests.fakes import FakeEngine, engine_modules, train_tokenizer

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_tokenizer(tmp_path_factory.mktemp("model"))


def use(engine: FakeEngine, monkeypatch: pytest.MonkeyPatch, failure: BaseException | None = None) -> None:
    for name, module in engine_modules(engine, failure).items():
        monkeypatch.setitem(sys.modules, name, module)


def error_of(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> str:
    """The one line of a command that fails without output."""
    assert cli.main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    lines = err.splitlines()
    assert len(lines) == 1, err
    typed, error, message = lines[0].partition(": error: ")
    assert error
    assert typed in ("hybrid", f"hybrid {arguments[0]}")
    return message


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "--cudda", "6", "a"], "--cudda"),
        (["run"], "PROMPT"),
        (["plan", "a", "b"], "a b"),
        (["run", "--context", "0", "a"], "--context"),
        (["run", "--threads", "many", "a"], "--threads"),
        (["run", "--max-tokens", "0", "a"], "--max-tokens"),
        (["run", "--stats", "xml", "a"], "xml"),
        (["run", "--cuda"], "--cuda"),
        (["plan", "--max-tokens", "4"], "--max-tokens"),
        (["rum"], "rum"),
        (["--cuda", "6"], "--cuda"),
    ],
)
def test_a_wrong_command_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    line = error_of(capsys, arguments)
    assert message in line
    assert "; see hybrid" in line
    assert line.endswith(" --help")


@pytest.mark.parametrize(
    ("flags", "mentions"),
    [
        (["--temperature", "-1"], ["temperature", "-1.0"]),
        (["--temperature", "nan"], ["temperature", "nan"]),
        (["--top-k", "-3"], ["top-k", "-3"]),
        (["--top-p", "0"], ["top-p", "0.0"]),
        (["--seed", "-1"], ["seed", "-1"]),
        (["--stop", ""], ["stop word"]),
        (["--raw", "--chat-template", "chatml"], ["--raw", "--chat-template"]),
        (["--beams", "2", "--stats", "json"], ["--stats", "--beams"]),
    ],
)
def test_sampling_that_cannot_be(
    model: Path,
    flags: list[str],
    mentions: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    use(FakeEngine([]), monkeypatch)
    line = error_of(capsys, ["run", "--model", str(model), *flags, "a"])
    assert all(mention in line for mention in mentions)


@pytest.mark.parametrize(
    "failure",
    [
        BudgetError("--cuda x: not a budget"),
        DeviceUnavailableError("no GPU:\n  libcuda.so.1 is missing"),
        ModelFileError("model.safetensors: cut off"),
        OutOfDeviceMemoryError(10, 20, 25, "VRAM"),
    ],
)
@pytest.mark.parametrize("command", ["run", "plan"])
def test_errors_of_loading_are_one_line(
    model: Path,
    command: str,
    failure: Exception,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    use(FakeEngine([]), monkeypatch, failure)
    prompt = ["a"] if command == "run" else []
    line = error_of(capsys, [command, "--model", str(model), *prompt])
    assert line == " ".join(str(failure).split())


def test_a_bug_keeps_its_traceback(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use(FakeEngine([]), monkeypatch, ZeroDivisionError("ours"))
    with pytest.raises(ZeroDivisionError):
        cli.main(["run", "--model", str(model), "a"])


def test_a_prompt_longer_than_the_context(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    engine = FakeEngine([], context_tokens=4)
    use(engine, monkeypatch)
    assert cli.main(["run", "--model", str(model), "once upon a time there was a cat"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "do not fit into 4" in err.splitlines()[-1]
    assert engine.closed


def test_an_error_in_the_middle_of_a_text_starts_on_its_own_line(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    engine = FakeEngine([ord("a") + 3] * 9)

    def fail(step: int) -> None:
        if step == 3:
            raise ContextFullError("the card fell out")

    engine.on_step = fail
    use(engine, monkeypatch)
    assert cli.main(["run", "--model", str(model), "x"]) == 2
    out, err = capsys.readouterr()
    assert out == "aaa\n"
    assert err.splitlines()[-1] == "hybrid run: error: the card fell out"
    assert engine.closed


def test_no_tokenizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    use(FakeEngine([]), monkeypatch)
    assert "no model here" in error_of(capsys, ["run", "--model", str(tmp_path), "a"])
    (tmp_path / "config.json").write_text("{}")
    assert "no tokenizer.model" in error_of(capsys, ["run", "--model", str(tmp_path), "a"])
    assert "no such folder" in error_of(capsys, ["run", "--model", str(tmp_path / "absent"), "a"])


def test_the_tokenizer_of_another_model(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tests.fakes.VOCAB", 50)
    use(FakeEngine([]), monkeypatch)
    line = error_of(capsys, ["run", "--model", str(model), "the cat"])
    assert "50" in line


@pytest.mark.parametrize(
    "name", ["absent/trace.json", "folder.json", "file/trace.json", "absent/trace.png", "folder.png"]
)
def test_a_timeline_that_cannot_be_written_stops_the_run_before_it_starts(
    model: Path,
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder.json").mkdir()
    (tmp_path / "folder.png").mkdir()
    use(FakeEngine([]), monkeypatch, AssertionError("the run has started"))
    path = tmp_path / name
    line = error_of(capsys, ["run", "--model", str(model), "--timeline", str(path), "a"])
    assert line.startswith(f"--timeline {path} ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "--timeline", "trace.svg", "a"], "--timeline trace.svg"),
        (["run", "--timeline", "trace", "a"], "--timeline trace"),
        (["plan", "--draw", "plan.pdf"], "--draw plan.pdf"),
        (["plan", "--draw", "absent/plan.png"], "--draw absent/plan.png"),
    ],
)
def test_a_picture_that_cannot_be_made_is_refused_before_any_work(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    use(FakeEngine([]), monkeypatch, AssertionError("the work has started"))
    assert error_of(capsys, arguments).startswith(message)


@pytest.mark.parametrize("arguments", [["run", "--timeline", "trace.png", "a"], ["plan", "--draw", "trace.png"]])
def test_without_matplotlib_it_says_what_to_install(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    use(FakeEngine([]), monkeypatch, AssertionError("the work has started"))
    line = error_of(capsys, arguments)
    assert line.startswith(f"{arguments[1]} trace.png: ")
    assert line.endswith("pip install 'hybrid-run[plot]'")


def test_a_text_without_a_step_has_no_timeline_to_draw(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    use(FakeEngine([ord("a") + 3]), monkeypatch)  # an engine that records nothing
    path = tmp_path / "trace.png"
    assert cli.main(["run", "--model", str(model), "--timeline", str(path), "x"]) == 2
    assert "no whole step was recorded, so there is nothing to draw" in capsys.readouterr().err.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_fails_leaves_no_empty_timeline(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    use(FakeEngine([]), monkeypatch, ModelFileError("broken"))
    error_of(capsys, ["run", "--model", str(model), "--timeline", str(tmp_path / "trace.json"), "a"])
    assert list(tmp_path.iterdir()) == []


def test_a_timeline_whose_folder_goes_away_costs_one_line_not_the_text(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "traces"
    folder.mkdir()
    engine = FakeEngine([ord("a") + 3] * 2)
    engine.on_step = lambda step: folder.rmdir() if step == 1 else None
    use(engine, monkeypatch)
    path = folder / "trace.json"
    assert cli.main(["run", "--model", str(model), "--timeline", str(path), "x"]) == 2
    out, err = capsys.readouterr()
    assert out == "aa\n"
    last = err.splitlines()[-1]
    assert last.startswith(f"hybrid run: error: --timeline {path} ")
    assert last.endswith("No such file or directory")


def test_ctrl_c_while_loading_is_quiet(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    use(FakeEngine([]), monkeypatch, KeyboardInterrupt())
    assert cli.main(["run", "--model", str(model), "a"]) == 130
    assert capsys.readouterr() == ("", "")


def process(
    model: Path, arguments: list[str], stdin: bytes = b"", stdout: int = subprocess.PIPE
) -> subprocess.CompletedProcess[bytes]:
    code = f"from tests.fakes import main; main({str(model)!r}, 'the cat')"
    line = [sys.executable, "-c", code, "run", "--model", str(model), *arguments]
    return subprocess.run(line, cwd=ROOT, input=stdin, stdout=stdout, stderr=subprocess.PIPE, check=False)


def test_standard_input_that_is_no_text(model: Path) -> None:
    done = process(model, ["-"], stdin=b"ab\xff")
    assert done.returncode == 2
    assert done.stderr == b"hybrid run: error: standard input is not UTF-8 at byte 2\n"


def test_standard_output_that_is_full(model: Path) -> None:
    with Path("/dev/full").open("wb") as full:
        done = process(model, ["a"], stdout=full.fileno())
    assert done.returncode == 2
    last = done.stderr.decode().splitlines()[-1]
    assert last == "hybrid: error: standard output cannot be written: No space left on device"


def command(shell: str, *arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """`hybrid` with those arguments as "$@" of a line of shell."""
    line = ["bash", "-o", "pipefail", "-c", shell, "bash", sys.executable, "-m", "hybrid", *arguments]
    return subprocess.run(line, cwd=ROOT, input=stdin, capture_output=True, check=False)


FULL = b"hybrid: error: standard output cannot be written: No space left on device\n"


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], ["run", "--help"], ["doctor"], ["plan"], ["run", "--print-config"]]
)
def test_whatever_is_written_to_a_full_disk_ends_in_one_line(arguments: list[str]) -> None:
    done = command('"$@" >/dev/full', *arguments)
    assert (done.returncode, done.stdout, done.stderr) == (2, b"", FULL)


def test_a_chat_that_is_written_to_a_full_disk_ends_in_one_line() -> None:
    done = command('"$@" >/dev/full', "chat", "--cuda", "0", stdin=b"hello\nagain\n")
    assert (done.returncode, done.stderr.splitlines(keepends=True)[-1]) == (2, FULL)
    assert b"Traceback" not in done.stderr


def test_a_result_does_not_depend_on_what_is_said_beside_it() -> None:
    arguments = ["run", "--cuda", "0", "--max-tokens", "8", "the cat"]
    usual = command('"$@"', *arguments)
    assert usual.stdout.strip()
    for shell in ('"$@" 2>/dev/full', '"$@" 2>&-', '"$@" 2> >(exit 0)'):
        done = command(shell, *arguments)
        assert (done.returncode, done.stdout, done.stderr) == (0, usual.stdout, b"")


def test_a_reader_that_has_seen_enough_ends_the_command_in_silence() -> None:
    for arguments in (["--help"], ["run", "--print-config"]):
        done = command('"$@" | (exit 0)', *arguments)
        assert (done.returncode in (0, 141), done.stderr) == (True, b"")


def closed(descriptor: int, arguments: list[str]) -> subprocess.CompletedProcess[bytes]:
    """A command of a process that is started without one of its standard streams."""
    shell = f'exec "$@" {descriptor}>&-'
    line = ["sh", "-c", shell, "sh", sys.executable, "-m", "hybrid", *arguments]
    return subprocess.run(line, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, check=False)


def test_standard_output_that_is_closed() -> None:
    done = closed(1, ["run", "--print-config"])
    assert done.returncode == 2
    assert done.stderr == b"hybrid: error: standard output is closed; send it to a file, or to /dev/null\n"


def test_standard_error_that_is_closed() -> None:
    done = closed(2, ["plan"])
    assert done.returncode == 0
    assert done.stdout.startswith(b"demo")


def test_standard_input_that_is_closed() -> None:
    done = closed(0, ["run", "--model", "nowhere", "-"])
    assert done.returncode == 2
    assert done.stderr.startswith(b"hybrid run: error: nowhere: no such folder; ")
    assert done.stderr.count(b"\n") == 1


def test_an_argument_that_is_no_text(model: Path) -> None:
    done = process(model, ["ab\udcff"])
    assert done.returncode == 2
    assert b"not valid Unicode at character 2" in done.stderr.splitlines()[-1]
