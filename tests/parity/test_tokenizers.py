"""Tokenizers of many makes against transformers: ids of texts, texts of ids, and text as it streams."""

import json
import random
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from hybrid.text.detokenizer import TextStream
from hybrid.text.json_tokenizer import JsonTokenizer
from hybrid.text.open_tokenizer import load_tokenizer
from hybrid.text.tokenizer import Tokenizer
from tests.fakes import train_tokenizer
from tests.tokenizer_makes import ENDING, MAKES, TEXTS, described, write

STORED = Path(__file__).parents[1] / "data" / "tokenizers.json"  # what transformers 5.24 gave; see store()
KEPT = (
    "byte-level Llama 3",
    "byte-fallback",
    "byte-fallback by tokens",
    "unigram",
    "word piece",
    "word level",
    "word ends",
    "rstrip in the file",
    "single_word in the config",
    "roles and additional",
    "a token map",
    "added_tokens.json",
    "new tokens",
)


def values(encode: Any, decode: Any, ids: list[list[int]]) -> dict[str, Any]:
    """Give what is compared: ids of texts with special tokens parsed and not, texts of ids."""
    return {
        "parsed": [encode(text, True) for text in TEXTS],
        "split": [encode(text, False) for text in TEXTS],
        "decoded": [decode(line) for line in ids],
    }


def some_ids(name: str, size: int) -> list[list[int]]:
    chance = random.Random(name)
    return [[chance.randrange(size) for _ in range(chance.randrange(1, 12))] for _ in range(30)]


def ours(tokenizer: Tokenizer, ids: list[list[int]]) -> dict[str, Any]:
    def encode(text: str, parsed: bool) -> list[int]:
        return tokenizer.encode(text, add_bos=parsed, parse_special=parsed)

    return values(encode, tokenizer.decode, ids) | {"roles": [tokenizer.bos_id, tokenizer.eos_id]}


def theirs(name: str, folder: Path, ids: list[list[int]]) -> dict[str, Any]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)

    def encode(text: str, parsed: bool) -> list[int]:
        found: list[int] = tokenizer(
            text, add_special_tokens=parsed, **({} if parsed else {"split_special_tokens": True})
        ).input_ids
        return found[:-1] if parsed and name in ENDING else found  # prompts go on

    def decode(line: list[int]) -> str:
        return str(tokenizer.decode(line, skip_special_tokens=True))

    return values(encode, decode, ids) | {"roles": [tokenizer.bos_token_id, tokenizer.eos_token_id]}


def assert_equal(folder: Path, given: dict[str, Any], expected: dict[str, Any], ids: list[list[int]]) -> None:
    assert given["roles"] == expected["roles"]
    for kind in ("parsed", "split"):
        for text, our, their in zip(TEXTS, given[kind], expected[kind], strict=True):
            assert our == their, (kind, text)
    gives_up_runs = "ByteFallback" in (folder / "tokenizer.json").read_text()
    for line, our, their in zip(ids, given["decoded"], expected["decoded"], strict=True):
        if gives_up_runs and "\ufffd" in our:
            continue  # a run of bytes that is no UTF-8 is lost whole there, which cannot be known while it streams
        assert our == their, line


@pytest.mark.parametrize("name", MAKES)
def test_as_in_transformers(name: str, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    tokenizer = load_tokenizer(write(name, tmp_path))
    assert isinstance(tokenizer, JsonTokenizer)
    ids = some_ids(name, tokenizer.vocab_size)
    assert_equal(tmp_path, ours(tokenizer, ids), theirs(name, tmp_path, ids), ids)


@pytest.mark.parametrize("name", MAKES)
def test_streamed_text_is_the_whole_text(name: str, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(write(name, tmp_path))
    for line in some_ids(name, tokenizer.vocab_size):
        for prompt in (0, len(line) // 2):
            stream = TextStream(tokenizer, line[:prompt])
            pieces = [*map(stream.feed, line[prompt:]), stream.flush()]
            before, whole = tokenizer.decode(line[:prompt]), tokenizer.decode(line)
            if whole.startswith(before):  # else a character, word end or space of the prompt is told only now
                assert "".join(pieces) == whole[len(before) :]
            assert sum(piece.count("\ufffd") for piece in pieces) <= whole.count("\ufffd")


SENTENCEPIECE = {
    "no config": {},
    "added": {
        "added_tokens_decoder": {
            "300": {"content": "<|user|>", **described(rstrip=True)},
            "301": {"content": "<think>", **described(special=False, single_word=True)},
            "302": {"content": "<|end|>", **described(lstrip=True)},
        },
        "eos_token": "<|end|>",
    },
    "roles": {"pad_token": "<pad>", "additional_special_tokens": ["<|user|>"], "eos_token": "</s>"},
    "a new name": {"added_tokens_decoder": {"299": {"content": "<|user|>", **described()}}},
    "not legacy": {"legacy": False, "additional_special_tokens": ["<|user|>"]},
    "no begin": {"add_bos_token": False},
}


@pytest.mark.parametrize("name", SENTENCEPIECE)
def test_sentencepiece_as_in_transformers(name: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    (train_tokenizer(tmp_path) / "config.json").write_text('{"model_type": "llama"}')
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "add_bos_token": True, "unk_token": "<unk>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config | SENTENCEPIECE[name]))
    own, other = load_tokenizer(tmp_path), transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert (own.bos_id, own.eos_id, own.vocab_size) == (other.bos_token_id, other.eos_token_id, len(other))
    for text in (
        "the cat",
        "<s>cat</s>the mat",
        "a<|user|> the<think>cat <think> on <|end|>the",
        "<pad>é<|user|>cat",
    ):
        ids = own.encode(text, parse_special=True)
        assert ids == other(text).input_ids
        assert own.decode(ids) == other.decode(ids, skip_special_tokens=True)
        split = other(text, add_special_tokens=False, split_special_tokens=True).input_ids
        assert own.encode(text, add_bos=False) == split


@pytest.mark.parametrize("name", KEPT)
def test_as_stored(name: str, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(write(name, tmp_path))
    ids = some_ids(name, tokenizer.vocab_size)
    assert_equal(tmp_path, ours(tokenizer, ids), json.loads(STORED.read_text())[name], ids)


def store() -> None:
    """Write what transformers gives; after a change of the makes, texts or ids."""
    kept = {}
    for name in KEPT:
        with TemporaryDirectory() as folder:
            tokenizer = load_tokenizer(write(name, Path(folder)))
            kept[name] = theirs(name, Path(folder), some_ids(name, tokenizer.vocab_size))
    lines = [f"{json.dumps(name)}: {json.dumps(value)}" for name, value in kept.items()]
    STORED.write_text("{\n" + ",\n".join(lines) + "\n}\n")
