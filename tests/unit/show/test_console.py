"""Sources of a prompt, and what of a file is text."""

import io
import sys
from pathlib import Path

import pytest

from hybrid.errors import UsageError
from hybrid.show import console
from hybrid.show.console import prompt_text

SAVED = {
    b"Once upon\na time\n": "Once upon\na time",
    b"\xef\xbb\xbfOnce": "Once",
    b"Once\r\n": "Once",
    b"Once\r\nupon\r\n\r\n": "Once\nupon\n",
    b"Once\n\n": "Once\n",
    b"a\rb\r": "a\rb\r",
    b"\xef\xbb\xbf\xef\xbb\xbfx": "\ufeffx",
    b"": "",
}


@pytest.mark.parametrize("data", SAVED)
@pytest.mark.parametrize("is_file", [True, False])
def test_a_prompt_is_the_text_that_somebody_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: bytes, is_file: bool
) -> None:
    path = tmp_path / "prompt.txt"
    path.write_bytes(data)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    assert prompt_text(*((None, path) if is_file else ("-", None))) == SAVED[data]


def test_what_is_no_prompt_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "prompt.txt"
    path.write_bytes("Once".encode("utf-16"))
    with pytest.raises(UsageError, match="not UTF-8 at byte 0"):
        prompt_text(None, path)
    with pytest.raises(UsageError, match="cannot be read"):
        prompt_text(None, tmp_path)
    monkeypatch.setattr(console, "_MAX_PROMPT_BYTES", 1000)
    with pytest.raises(UsageError, match="/dev/zero has more than 1000 bytes"):
        prompt_text(None, Path("/dev/zero"))
