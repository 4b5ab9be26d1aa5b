"""The command line around an engine that recites: what goes to stdout, what goes to stderr, exit codes."""

import io
import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from hybrid.cli import completion
from hybrid.cli import main as cli
from hybrid.loading.settings import DEMO_MODEL, RunSettings
from hybrid.text.open_tokenizer import load_tokenizer
from tests.fakes import FakeEngine, engine_modules, small_plan, train_tokenizer

ROOT = Path(__file__).parents[3]
STORY = "the cat sat on the mat"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_tokenizer(tmp_path_factory.mktemp("model"))


@pytest.fixture
def engine(model: Path, monkeypatch: pytest.MonkeyPatch) -> FakeEngine:
    """An engine that goes on with the story, behind the modules that the command imports."""
    engine = FakeEngine(load_tokenizer(model).encode(STORY, add_bos=False))
    use(engine, monkeypatch)
    return engine


def use(engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> list[RunSettings]:
    seen: list[RunSettings] = []
    for name, module in engine_modules(engine, settings_seen=seen).items():
        monkeypatch.setitem(sys.modules, name, module)
    return seen


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, list[str]]:
    """Exit code, standard output, and the lines of standard error."""
    code = cli.main(["run", *arguments])
    out, err = capsys.readouterr()
    return code, out, err.splitlines()


def command(model: Path, *arguments: str, endless: bool = False) -> list[str]:
    """The same in a process of its own."""
    code = f"from tests.fakes import main; main({str(model)!r}, {' ' + STORY!r}, endless={endless})"
    return [sys.executable, "-c", code, "run", "--model", str(model), *arguments]


def test_stdout_is_the_completion_and_nothing_else(
    engine: FakeEngine, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run(capsys, "--model", str(model), "once upon a time")
    assert code == 0
    assert out == f" {STORY}\n"  # the prompt is not repeated, the space after it is kept
    assert err == [
        "fake · llama, Linears 43.75 KiB · "
        "VRAM 5.00 MiB of 8.00 MiB (budget chosen automatically; a bench top) · "
        "context 64 · predicted 500.0 tokens/s",
        err[1],
    ]
    assert err[1].startswith("prefill ")
    assert err[1].endswith("VRAM peak 6.00 MiB of 8.00 MiB (this process, NVML) · RAM peak 3.00 GiB · end of text")
    assert engine.closed


def test_settings_reach_the_engine(
    engine: FakeEngine, model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen = use(engine, monkeypatch)
    where = ["--cuda", "1.5", "--device", "cuda:1", "--machine", "colab-t4"]
    flags = [*where, "--context", "32", "--threads", "3", "--host-dtype", "int4", "--activations", "float"]
    assert run(capsys, "--model", str(model), *flags, "a")[0] == 0
    assert cli.main(["plan", "--host-dtype", "int8"]) == 0
    assert seen == [
        RunSettings(model, None, "1.5", "cuda:1", "colab-t4", 32, 3, None, None, "int4", "float"),
        RunSettings(DEMO_MODEL, host_dtype="int8"),
    ]


def test_flags_that_change_nothing_are_told(
    engine: FakeEngine, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, _, err = run(capsys, "--model", str(model), "--top-k", "5", "--seed", "0", "--length-penalty", "2", "a")
    assert err[1:3] == [
        "note: --top-k, --seed: no effect without a --temperature above 0, the likeliest token is always taken",
        "note: --length-penalty: no effect without --beams",
    ]
    _, _, err = run(capsys, "--model", str(model), "--top-k", "5", "--seed", "0", "--temperature", "1", "a")
    assert len(err) == 2


def test_one_token_has_no_rate_of_decoding(engine: FakeEngine, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, _, err = run(capsys, "--model", str(model), "--max-tokens", "1", "once")
    assert " · decode 1 token · " in err[-1]


def test_max_tokens_ends_the_text(engine: FakeEngine, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, "--model", str(model), "--max-tokens", "2", "once")
    assert code == 0
    assert "decode 2 tokens" in err[-1]
    assert err[-1].endswith("stopped at --max-tokens")


def test_a_full_context_ends_the_text_and_says_so(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    use(FakeEngine([5] * 99, context_tokens=12), monkeypatch)
    code, _, err = run(capsys, "--model", str(model), "a")
    assert code == 0
    assert err[-1].endswith("stopped, context full")


def test_stats_json_is_the_last_line(engine: FakeEngine, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, out, err = run(capsys, "--model", str(model), "--stats", "json", "--seed", "7", "--temperature", "1e-9", "a")
    assert out == f" {STORY}\n"
    assert len(err) == 2
    stats = json.loads(err[-1])
    assert list(stats) == [
        "prompt_tokens",
        "generated_tokens",
        "stop_reason",
        "seed",
        "prefill_s",
        "prefill_tokens_per_s",
        "time_to_first_token_s",
        "decode_s",
        "decode_tokens_per_s",
        "decode_step_median_s",
        "decode_depth",
        "predicted_decode_step_s",
        "predicted_depth",
        "measured_over_predicted",
        "memory",
        "gpu",
        "plan",
        "op_times",
        "warnings",
    ]
    assert (stats["stop_reason"], stats["seed"], stats["predicted_decode_step_s"]) == ("end", 7, 0.002)
    assert stats["generated_tokens"] == len(engine.script)
    assert stats["memory"] == engine.memory()
    # Columns of 64 bytes; two kinds of Linears with 60, 65 and 0 resident, 10, 10 and 0 streamed; and a head.
    assert stats["plan"] == {
        "budget_bytes": 8 * 2**20,
        "vram_bytes": 5 * 2**20,
        "ram_bytes": 4 * 2**20,
        "resident_bytes": 2 * 125 * 64,
        "streamed_bytes": 2 * 20 * 64,
        "host_bytes": (2 * 155 + 100) * 64,
    }


@pytest.mark.parametrize(("steps", "simulated", "compared"), [(8, False, True), (7, False, False), (8, True, False)])
def test_the_prediction_stands_beside_what_was_measured_over_enough_steps(
    steps: int,
    simulated: bool,
    compared: bool,
    model: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    engine = FakeEngine([ord("a") + 3] * 99)
    engine.simulated = simulated
    use(engine, monkeypatch)
    arguments = ["--model", str(model), "--max-tokens", str(steps + 1), "once upon a time"]  # the last is not decoded
    assert (" tokens/s (predicted 500.0) · " in run(capsys, *arguments)[2][-1]) == compared
    engine.trim(0)
    stats = json.loads(run(capsys, *arguments, "--stats", "json")[2][-1])
    assert stats["predicted_depth"] == 1024
    assert stats["decode_depth"] == stats["prompt_tokens"] + (steps - 1) / 2
    ratio = stats["decode_step_median_s"] / stats["predicted_decode_step_s"] if compared else None
    assert stats["measured_over_predicted"] == ratio


def test_op_times_says_when_there_were_no_steps(
    engine: FakeEngine, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(capsys, "--model", str(model), "--op-times", "a")[2][-1] == "no decode step was recorded"


def test_verbose_shows_the_placement_on_stderr(
    engine: FakeEngine, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, out, err = run(capsys, "--model", str(model), "--verbose", "a")
    assert out == f" {STORY}\n"
    assert any(line.startswith("0-1 ") and "62% VRAM" in line for line in err)
    assert "note: nothing else fits" in err


def test_the_timeline_is_written(
    engine: FakeEngine, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "trace.json"
    assert run(capsys, "--model", str(model), "--timeline", str(path), "a")[0] == 0
    assert "traceEvents" in json.loads(path.read_text())


def test_plan_prints_tables(engine: FakeEngine, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", "--cuda", "6"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert out.splitlines() == [
        "fake · VRAM 5.00 MiB of 8.00 MiB (--cuda 6; bench-top)",
        "layer   q_proj, down_proj   lm_head",
        "───────────────────────────────────",
        "0-1     62% VRAM",
        "        10% streamed",
        "        28% host",
        "2       host",
        "-                           host",
        "",
        "memory                 VRAM        RAM",
        "──────────────────────────────────────",
        "context            4.00 MiB",
        "resident weights   1.00 MiB",
        "host weights                  3.00 MiB",
        "KV cache                      1.00 MiB",
        "total              5.00 MiB   4.00 MiB",
        "budget             8.00 MiB",
        "",
        "predicted                   step             rate   the host waits for",
        "─────────────────────────────────────────────────────────────────────────────────────────",
        "decode after 1,024 tokens   2 ms   500.0 tokens/s   host columns 75%, other operators 25%",
        "prefill of 16 tokens        8 ms   2,000 tokens/s   mostly bus",
        "",
        "note: nothing else fits",
    ]


def test_plan_draws_a_picture_beside_what_it_prints(
    engine: FakeEngine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["plan", "--json"]) == 0
    expected = capsys.readouterr()
    assert cli.main(["plan", "--json", "--draw", str(tmp_path / "plan.png")]) == 0
    assert capsys.readouterr() == expected
    assert [file.name for file in tmp_path.iterdir()] == ["plan.png"]


def test_plan_verbose_gives_a_reason_for_each_linear(engine: FakeEngine, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", "--verbose"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "0       q_proj      fp16     6.25 KiB   60% VRAM, 10% streamed, 30% host   because" in lines


def test_plan_json_is_the_plan_and_nothing_else(engine: FakeEngine, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out) == json.loads(json.dumps(small_plan().to_json()))
    assert err == ""


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["plan", "--help"], ["--version"], []])
def test_help_and_version_go_to_stdout(arguments: Sequence[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(arguments) == 0
    out, err = capsys.readouterr()
    assert "hybrid" in out
    assert err == ""


def test_help_lists_the_commands_in_whole_sentences(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in ("run", "plan", "chat", "tune", "doctor"))
    assert "..." not in out.partition("Commands")[2].partition("Examples")[0]


def test_hybrid_run_is_hybrid_run(engine: FakeEngine, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main_run(["--model", str(model), "a"]) == 0
    assert capsys.readouterr().out == f" {STORY}\n"
    assert cli.main_run(["--help"]) == 0
    assert "Usage: hybrid-run [FLAGS] [PROMPT]" in capsys.readouterr().out


def test_a_prompt_from_standard_input(model: Path) -> None:
    done = subprocess.run(
        command(model, "--stats", "json", "-"),
        cwd=ROOT,
        input=b"once upon a time\n",
        capture_output=True,
        check=True,
    )
    assert done.stdout == f" {STORY}\n".encode()
    stats = json.loads(done.stderr.splitlines()[-1])
    assert stats["prompt_tokens"] == len(load_tokenizer(model).encode("once upon a time"))


def read_all(descriptor: int) -> bytes:
    """Read a pseudo-terminal until its other side is closed."""
    parts = []
    while True:
        try:
            part = os.read(descriptor, 4096)
        except OSError:  # how Linux says that nobody has it open any more
            break
        if not part:
            break
        parts.append(part)
    return b"".join(parts)


def test_ctrl_c_ends_the_text_cleanly(model: Path) -> None:
    terminal, side = pty.openpty()
    process = subprocess.Popen(
        command(model, "--max-tokens", "1000000", "once", endless=True),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=side,
        stdin=side,
        start_new_session=True,
    )
    os.close(side)
    assert process.stdout is not None
    text = process.stdout.read(20)  # generation has begun
    process.send_signal(signal.SIGINT)
    text += process.stdout.read()
    process.stdout.close()
    assert process.wait() == 130
    assert text.endswith(b"\n")
    assert b"Traceback" not in text
    last = read_all(terminal).decode().splitlines()[-1]
    os.close(terminal)
    assert last.endswith("interrupted")


def test_a_reader_that_leaves_is_no_error(model: Path) -> None:
    process = subprocess.Popen(
        command(model, "--max-tokens", "1000000", "once", endless=True),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    process.stdout.read(20)
    process.stdout.close()
    _, err = process.communicate()
    assert process.returncode == 128 + signal.SIGPIPE
    assert err.decode().splitlines()[1:] == []  # the opening line, no complaint


def test_a_bar_is_drawn_on_a_terminal_and_gone_afterwards(model: Path) -> None:
    terminal, side = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    process = subprocess.Popen(command(model, "once"), cwd=ROOT, stdout=subprocess.PIPE, stderr=side, env=environment)
    os.close(side)
    shown = read_all(terminal).decode()
    os.close(terminal)
    assert process.stdout is not None
    assert process.stdout.read() == f" {STORY}\n".encode()
    process.stdout.close()
    assert process.wait() == 0
    assert "Loading weights" in shown
    assert "1.00 MiB of 1.00 MiB" in shown
    assert shown.rstrip().endswith(" · end of text")


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_how_far_a_long_prompt_is_read_is_seen_until_the_text_begins(
    engine: FakeEngine, model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(completion, "_SHORT_S", 0.0)
    assert "Reading" not in "".join(run(capsys, "--model", str(model), "once")[2])  # no terminal
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setattr(sys, "stderr", terminal)
    assert cli.main(["run", "--model", str(model), "once"]) == 0
    before, _, after = terminal.getvalue().partition(" the cat")
    reading = before.rpartition("Reading the prompt")[2]
    assert "100%" in reading
    assert reading.endswith("\x1b[?25h\r\x1b[J\r")  # it is gone, and the cursor is back
    assert "Reading" not in after
