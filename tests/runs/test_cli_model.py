"""The command line with a real model: what each flag does to the text."""

import io
import json
import shutil
import sys
from pathlib import Path

import pytest

from hybrid.cli import main as cli
from hybrid.loading.settings import DEMO_MODEL

ONCE = "Once upon a time"
TEMPLATE = "{% for m in messages %}Once upon a {{ m.content }}{% endfor %}"


def out_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Standard output of a command that succeeds."""
    assert cli.main(list(arguments)) == 0
    return capsys.readouterr().out


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    return out_of(capsys, "run", "--cuda", "0", "--max-tokens", "12", *arguments)


@pytest.fixture
def model_with_template(tmp_path: Path) -> Path:
    """The demo model with a chat template of its own."""
    folder = tmp_path / "model"
    shutil.copytree(DEMO_MODEL, folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


def test_the_models_own_template_is_used_unless_raw(
    model_with_template: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ("--model", str(model_with_template))
    assert run(capsys, *where, "--raw", ONCE) == run(capsys, ONCE)
    assert run(capsys, *where, "time") == run(capsys, *where, "--chat-template", "default", "time")
    assert run(capsys, *where, "time") != run(capsys, *where, "--raw", "time")


def test_recommended_sampling_is_taken_over_and_flags_win(
    model_with_template: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recommended = {"do_sample": True, "temperature": 5.0, "bos_token_id": 1, "eos_token_id": 2}
    (model_with_template / "generation_config.json").write_text(json.dumps(recommended))
    where = ("--model", str(model_with_template), "--raw", ONCE)
    greedy = run(capsys, *where, "--temperature", "0")
    assert greedy == run(capsys, ONCE)
    assert run(capsys, *where, "--seed", "3") != greedy


def test_a_prompt_from_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "prompt.txt").write_text(ONCE + "\n")
    assert run(capsys, "--file", str(tmp_path / "prompt.txt")) == run(capsys, ONCE)


def test_a_stop_word_ends_the_text_and_is_not_shown(capsys: pytest.CaptureFixture[str]) -> None:
    whole = run(capsys, ONCE)
    stop = whole.split()[3]
    assert run(capsys, "--stop", stop, ONCE) == whole[: whole.index(stop)] + "\n"


def test_several_completions_are_seeded_one_after_another(capsys: pytest.CaptureFixture[str]) -> None:
    drawn = ("--temperature", "1")
    first, second = run(capsys, *drawn, "--seed", "5", "--n", "2", ONCE).strip("\n").split("\n\n")
    assert first == run(capsys, *drawn, "--seed", "5", ONCE).strip("\n")
    assert second == run(capsys, *drawn, "--seed", "6", ONCE).strip("\n")


def test_one_beam_more_finds_a_text_at_least_as_likely(capsys: pytest.CaptureFixture[str]) -> None:
    def log_probability(beams: str) -> float:
        assert cli.main(["run", "--cuda", "0", "--max-tokens", "6", "--beams", beams, "The little dog"]) == 0
        return float(capsys.readouterr().err.rsplit(" ", 1)[1])

    assert log_probability("4") >= log_probability("2")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--beams", "2", "--temperature", "1", "x"], "--beams"),
        (["--n", "2", "x"], "--temperature"),
        (["--logit-bias", "one=2", "x"], "--logit-bias one=2"),
        (["--file", "/nowhere/prompt", "x"], "PROMPT"),
        (["--file", "/nowhere/prompt"], "/nowhere/prompt"),
        (["--config", "no-such-preset", "x"], "colab-t4"),
        (["--chat-template", "nonsense", "x"], "zephyr"),
    ],
)
def test_what_does_not_go_together_is_one_line(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["run", "--cuda", "0", *arguments]) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("hybrid run: error: ")
    assert said in last


def test_a_budget_that_is_clamped_or_holds_nothing_is_said_without_being_asked(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for budget, said in (("99", "the budget is 1.00 GiB"), ("1MiB", "the GPU is not used")):
        assert cli.main(["run", "--device", "simulated", "--cuda", budget, "--max-tokens", "2", ONCE]) == 0
        assert said in capsys.readouterr().err


def test_flags_win_over_a_settings_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.toml").write_text('cuda = 0\nmax-tokens = 3\nmodel = "here"\n')
    config = ("--config", str(tmp_path / "mine.toml"))
    printed = out_of(capsys, "run", *config, "--max-tokens", "4", "--print-config")
    assert 'cuda = "0"' in printed
    assert "max-tokens = 4" in printed
    assert f'model = "{tmp_path}/here"' in printed
    shown = out_of(capsys, "plan", "--config", "colab-t4", "--json")
    assert json.loads(shown)["machine"]["name"] == "colab-t4"


def test_chat_answers_lines(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"Once upon a time\n"), encoding="utf-8"))
    assert cli.main(["chat", "--cuda", "0", "--max-tokens", "12", "--chat-template", "none"]) == 0
    assert capfd.readouterr().out.startswith(", there was")


@pytest.mark.parametrize("command", ["run", "chat"])
def test_notes_on_tokens_are_told(
    command: str, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(DEMO_MODEL, tmp_path / "model")
    (tmp_path / "model" / "tokenizer_config.json").write_text('{"add_eos_token": true}')
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"Once\n"), encoding="utf-8"))
    prompt = ["-"] if command == "run" else []
    assert cli.main([command, "--model", str(tmp_path / "model"), "--cuda", "0", "--max-tokens", "2", *prompt]) == 0
    assert capfd.readouterr().err.count("note: add_eos_token is true") == 1


def test_doctor_finds_the_model(capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["doctor", "--json", "--model", str(DEMO_MODEL)])
    sections = json.loads(capsys.readouterr().out)["sections"]
    assert any("llama" in str(section) for section in sections)
