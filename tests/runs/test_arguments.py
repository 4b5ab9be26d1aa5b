"""The Python API as it is called by mistake, how it shows what it does, and what a model says of itself."""

import ast
import io
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import hybrid
from hybrid.errors import UsageError
from hybrid.show.progress import ProgressLine
from hybrid.text.text_model import TextModel

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def model() -> Iterator[TextModel]:
    with hybrid.load(cuda=0, progress=False) as loaded:
        yield loaded


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"cudaa": 6}, ("'cudaa'", "did you mean cuda?")),
        ({"thread": 2}, ("did you mean threads?",)),
        ({"xyz": 2}, ("it has model, cuda,",)),
        ({"threads": "2"}, ("threads is '2'", "a whole number")),
        ({"threads": True}, ("threads is True", "a whole number")),
        ({"context_tokens": 1.5}, ("context_tokens is 1.5", "a whole number")),
        ({"cuda": [6]}, ("cuda is [6]", "text, a number or None")),
        ({"device": 0}, ("device is 0", "must be text")),
        ({"model": None}, ("model is None", "text or a path")),
        ({"progress": "no"}, ("progress is 'no'", "True or False")),
    ],
)
def test_what_load_cannot_take_is_said_first(arguments: dict[str, Any], said: tuple[str, ...]) -> None:
    with pytest.raises(UsageError) as caught:
        hybrid.load(**{"model": "no/such-model-anywhere", **arguments})
    assert str(caught.value).startswith("load()")
    assert all(part in str(caught.value) for part in said)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"temprature": 1.0}, "did you mean temperature?"),
        ({"max_token": 1}, "did you mean max_tokens?"),
        ({"temperature": "hot"}, "temperature is 'hot', must be a number"),
        ({"top_k": 1.5}, "top_k is 1.5, must be a whole number"),
        ({"max_tokens": "5"}, "max_tokens is '5'"),
        ({"logit_bias": [1]}, "must be a dictionary"),
        ({"stop": ["a", 5]}, "stop has 5"),
        ({"stop": 5}, "stop has 5"),
        ({"prompt": 5}, "prompt is 5, must be text"),
        ({"stop": ""}, "at least one character"),
        ({"max_tokens": 0}, "at least 1"),
    ],
)
def test_what_a_text_cannot_be_made_with(model: TextModel, arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=re.escape(said)):
        model.generate(**{"prompt": "Once", "max_tokens": 2, **arguments})
    if "at least 1" not in said or "character" in said:  # that is known when the text begins
        with pytest.raises(UsageError, match=re.escape(said)):
            model.stream(**{"prompt": "Once", "max_tokens": 2, **arguments})


def test_numbers_of_numpy_are_numbers(model: TextModel) -> None:
    plain = model.generate("Once", max_tokens=3, temperature=1.0, top_k=4, seed=1)
    given = {"max_tokens": np.int64(3), "temperature": np.float32(1), "top_k": np.int32(4), "seed": np.int64(1)}
    assert model.generate("Once", **given) == plain


def test_text_alone_is_one_stop_text(model: TextModel) -> None:
    whole = model.generate("Once upon a time", max_tokens=20)
    assert "girl" in whole
    assert model.generate("Once upon a time", max_tokens=20, stop="girl") == whole.partition("girl")[0]
    assert model.generate("Once upon a time", max_tokens=20, stop=["girl"]) == whole.partition("girl")[0]


def test_a_model_says_what_it_is(model: TextModel) -> None:
    assert re.fullmatch(r"<TextModel demo · llama, Linears 4\.45 MiB · CPU only \(.+\) · context \d+>", repr(model))


def test_no_error_drags_another_along() -> None:
    """Whoever reads an error of ours needs nothing of the one that it came from: all that counts is in its line."""
    for path in (*ROOT.glob("hybrid/**/*.py"), *ROOT.glob("offload/**/*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Raise) and node.cause is not None:
                assert isinstance(node.cause, ast.Constant), f"{path}, line {node.lineno}"


def test_progress_is_shown_unless_it_is_turned_off(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("TERM", "xterm")
    for progress in (True, False):
        monkeypatch.setattr(sys, "stderr", Terminal())
        hybrid.load(cuda=0, progress=progress).close()
        assert ("Opening the model" in sys.stderr.getvalue()) == progress  # type: ignore[attr-defined]


def test_a_notebook_has_one_line_that_changes_and_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[tuple[str, str, bool]] = []

    def publish(data: dict[str, str], transient: dict[str, str], update: bool) -> None:
        sent.append((data["text/plain"], transient["display_id"], update))

    shell = SimpleNamespace(kernel=object(), display_pub=SimpleNamespace(publish=publish))
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))  # type: ignore[arg-type]
    with ProgressLine(io.StringIO(), "Loading") as progress:
        progress.on_stage("Loading weights", 100)
        progress.on_bytes(100)
    texts, places, updates = zip(*sent, strict=True)
    assert texts[0] == "Loading"
    assert any(text.startswith("Loading weights") for text in texts)
    assert texts[-1] == ""
    assert len(set(places)) == 1
    assert updates == (False, *[True] * (len(sent) - 1))
