"""Names that `import hybrid` offers, and what it costs."""

import inspect
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

import pytest

import hybrid
from hybrid.cli.flag_values import run_settings
from hybrid.cli.flags import RunFlags
from hybrid.cli.options import KvDtype
from hybrid.loading.settings import RunSettings
from hybrid.text import text_model

HEAVY = (
    "onnx",
    "onnxruntime",
    "numba",
    "scipy",
    "cupy",
    "pynvml",
    "rich",
    "sentencepiece",
    "tokenizers",
    "jinja2",
    "huggingface_hub",
    "http.client",
)


def test_the_public_names() -> None:
    assert sorted(hybrid.__all__) == ["HybridError", "OffloadError", "TextModel", "__version__", "load"]
    for name in hybrid.__all__:
        assert getattr(hybrid, name) is not None


@pytest.mark.parametrize(
    ("code", "libraries"),
    [
        ("import hybrid, hybrid.cli.main", ("numpy", *HEAVY)),
        ("from hybrid.cli.main import main; main(['--help'])", ("numpy", *HEAVY)),
        ("from hybrid import load", HEAVY),
    ],
)
def test_importing_the_package_imports_nothing_heavy(code: str, libraries: Sequence[str]) -> None:
    """Libraries that take long are imported when a model is loaded."""
    code += f"; import sys; print([name for name in {libraries!r} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "[]"


def test_load_completes_a_prompt_with_the_demo_model() -> None:
    with hybrid.load(cuda=0) as model:
        text = model.generate("Once upon a time", max_tokens=20)
        assert text == "".join(model.stream("Once upon a time", max_tokens=20))
        assert text.startswith(",")
        assert model.last_stats is not None
        assert model.last_stats.generated_tokens == 20
        sampled = [model.generate("Once upon a time", max_tokens=20, temperature=1.0, seed=7) for _ in range(2)]
        assert sampled[0] == sampled[1]


def test_what_load_is_given_reaches_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[RunSettings] = []
    monkeypatch.setattr(text_model, "open_text_model", lambda settings, **callbacks: seen.append(settings))
    hybrid.load(cuda=0, ram=1.5, kv_dtype="fp16", host_dtype="int8", activations="float", threads=1, context_tokens=9)
    assert seen[0].cuda == "0"
    assert seen[0].ram == "1.5"
    assert (seen[0].kv_dtype, seen[0].host_dtype, seen[0].activations) == ("fp16", "int8", "float")
    assert (seen[0].threads, seen[0].context_tokens) == (1, 9)


def test_python_and_the_command_line_have_the_same_settings() -> None:
    settings = [field.name for field in fields(RunSettings)]
    assert sorted(inspect.signature(hybrid.load).parameters) == sorted([*settings, "progress"])
    given = RunFlags(
        "a prompt", None, "m", "fp16", "1", "cpu", "t4", 9, 2, "3", KvDtype.FP16, "int8", True, activations="float"
    )
    assert run_settings(given) == RunSettings(
        "m", "fp16", "1", "cpu", "t4", 9, 2, "3", "fp16", "int8", "float", allow_unused=True
    )


def test_a_closed_model_says_so() -> None:
    model = hybrid.load(cuda=0)
    model.close()
    model.close()
    with pytest.raises(hybrid.HybridError, match="demo was closed"):
        model.generate("Once upon a time")


def test_a_run_reports_to_nobody_and_leaves_only_kernels_in_the_home_folder(tmp_path: Path) -> None:
    """onnxruntime would, but not where it sees a test or a CI: hence the bare environment."""
    kept = Path.home() / ".cache" / "hybrid-run" / "cpu"
    if kept.is_dir():  # compiling the kernels anew takes many seconds
        shutil.copytree(kept, tmp_path / ".cache" / "hybrid-run" / "cpu")
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}
    code = "import hybrid; hybrid.load(cuda=0).generate('Once', max_tokens=2)"
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
    assert [path.name for path in tmp_path.iterdir()] == [".cache"]
    assert [path.name for path in (tmp_path / ".cache").iterdir()] == ["hybrid-run"]
