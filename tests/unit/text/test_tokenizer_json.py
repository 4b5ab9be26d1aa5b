"""A tokenizer.json: against the `tokenizers` library itself, piece by piece and at once; broken files."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybrid.errors import ModelFileError, TokenizerError
from hybrid.text.detokenizer import TextStream
from hybrid.text.json_tokenizer import JsonTokenizer
from hybrid.text.open_tokenizer import load_tokenizer
from hybrid.text.sentencepiece_tokenizer import SentencePieceTokenizer
from tests.fakes import train_json_tokenizer, train_tokenizer

MODELS = Path(__file__).parents[4] / "shared" / "models"
EXPORTS = MODELS / "exports"
REAL = {
    "gpt2": MODELS / "onnx-tiny-random-gpt2",
    "stories260K": EXPORTS / "stories260K" / "genai-cpu-fp32",
    "stories260K optimum": EXPORTS / "stories260K" / "optimum-fp32",
    "babyllama": EXPORTS / "babyllama-tok105-1M" / "genai-cpu-fp32",
}
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)


def load(folder: Path) -> JsonTokenizer:
    tokenizer = load_tokenizer(folder)
    assert isinstance(tokenizer, JsonTokenizer), tokenizer.notes
    return tokenizer


@pytest.fixture(scope="session")
def byte_level(tmp_path_factory: pytest.TempPathFactory) -> JsonTokenizer:
    return load(train_json_tokenizer(tmp_path_factory.mktemp("byte-level")))


@pytest.fixture(scope="session")
def byte_fallback(tmp_path_factory: pytest.TempPathFactory) -> JsonTokenizer:
    return load(train_json_tokenizer(tmp_path_factory.mktemp("fallback"), byte_level=False, begins=True))


@pytest.fixture(scope="session", params=("byte-level", "byte-fallback", *REAL))
def tokenizer(request: pytest.FixtureRequest, byte_level: JsonTokenizer, byte_fallback: JsonTokenizer) -> JsonTokenizer:
    if request.param not in REAL:
        return byte_level if request.param == "byte-level" else byte_fallback
    folder = REAL[request.param]
    if not folder.is_dir():
        pytest.skip(f"no {folder}: trained tokenizers are not part of the project")
    return load(folder)


def streamed(tokenizer: JsonTokenizer, ids: list[int], after: list[int] | None = None) -> list[str]:
    stream = TextStream(tokenizer, after or [])
    return [*[stream.feed(token_id) for token_id in ids], stream.flush()]


def is_byte_level(tokenizer: JsonTokenizer) -> bool:
    return type(tokenizer._backend.decoder).__name__ == "ByteLevel"


@given(data=st.data())
def test_any_ids_stream_to_the_text_that_the_library_gives(tokenizer: JsonTokenizer, data: st.DataObject) -> None:
    low = st.integers(0, min(270, tokenizer.vocab_size) - 1)
    ids = data.draw(st.lists(low | st.integers(0, tokenizer.vocab_size - 1), max_size=30))
    text = "".join(streamed(tokenizer, ids))
    assert text == tokenizer.decode(ids)
    if is_byte_level(tokenizer) or "\ufffd" not in text:
        assert text == tokenizer._backend.decode(ids, skip_special_tokens=True)


@given(text=TEXT)
def test_text_comes_back_whole_and_character_by_character(tokenizer: JsonTokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    pieces = streamed(tokenizer, ids)
    assert "".join(pieces) == tokenizer._backend.decode(ids)
    if is_byte_level(tokenizer):
        assert "".join(pieces) == text
        assert all("\ufffd" not in piece for piece in pieces) or "\ufffd" in text


@given(data=st.data())
def test_a_prompt_and_its_continuation_read_like_one_text(tokenizer: JsonTokenizer, data: st.DataObject) -> None:
    prompt = tokenizer.encode(data.draw(TEXT))
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=20))
    whole = tokenizer.decode(prompt) + "".join(streamed(tokenizer, ids, after=prompt))
    assert whole == tokenizer.decode(prompt + ids)


@given(text=TEXT)
def test_encoding_is_the_librarys(tokenizer: JsonTokenizer, text: str) -> None:
    backend = tokenizer._backend
    ids = tokenizer.encode(text, add_bos=False, parse_special=True)
    assert ids == backend.encode(text, add_special_tokens=False).ids
    assert tokenizer.encode(text, parse_special=True) == backend.encode(text).ids


def test_a_character_in_bytes_comes_whole(byte_level: JsonTokenizer, byte_fallback: JsonTokenizer) -> None:
    for tokenizer in (byte_level, byte_fallback):
        euro = tokenizer.encode("€", add_bos=False)[-3:]
        assert streamed(tokenizer, euro) == ["", "", "€", ""]
        assert "".join(streamed(tokenizer, [*euro[:2], 2, euro[2]])) == "€"  # a hidden token is not there at all
        assert streamed(tokenizer, euro[:2])[:2] == ["", ""]
        assert streamed(tokenizer, euro[:2])[2] == ("\ufffd" if tokenizer is byte_level else "\ufffd\ufffd")


def test_one_leading_space_is_stripped_also_where_it_is_a_byte(byte_fallback: JsonTokenizer) -> None:
    space = byte_fallback.token_id("<0x20>")
    assert space is not None
    for ids, text in (([space], ""), ([space, space], " "), ([0, space, space, 3], " \0")):
        assert byte_fallback.decode(ids) == "".join(streamed(byte_fallback, ids)) == text
        assert byte_fallback._backend.decode(ids) == text


def test_a_character_that_the_prompt_begins_is_whole_in_the_text(
    byte_level: JsonTokenizer, byte_fallback: JsonTokenizer
) -> None:
    for tokenizer in (byte_level, byte_fallback):
        *prompt, last = tokenizer.encode("a€", add_bos=False)
        assert streamed(tokenizer, [last], after=prompt) == ["€", ""]
        assert streamed(tokenizer, [], after=prompt) == [""]


def test_special_tokens(byte_level: JsonTokenizer) -> None:
    start, end = byte_level.token_id("<|im_start|>"), byte_level.token_id("<|im_end|>")
    assert (byte_level.bos_id, byte_level.eos_id) == (1, 2)
    cat = byte_level.encode("cat")
    assert byte_level.encode("<|im_start|>cat<|im_end|>", parse_special=True) == [start, *cat, end]
    as_text = byte_level.encode("<|im_start|>cat<|im_end|>")
    assert start not in as_text
    assert byte_level.decode(as_text) == "<|im_start|>cat<|im_end|>"
    assert byte_level.decode([start, *cat, end, 2, byte_level.vocab_size, 10**10, -1]) == "cat"  # type: ignore[list-item]
    assert byte_level.token_id("never heard of") is None
    assert byte_level.special.in_templates() == {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}


@pytest.mark.parametrize(
    ("config", "begins", "first"),
    [
        ({}, True, [1]),  # as the post-processor does
        ({}, False, []),
        ({"add_bos_token": False}, True, [1]),  # tokenizer.json decides, as in transformers
        ({"add_bos_token": True}, False, []),
        ({"add_bos_token": True}, True, [1]),
        ({"add_bos_token": True, "bos_token": None}, False, []),
    ],
)
def test_what_texts_begin_with(tmp_path: Path, config: dict[str, Any], begins: bool, first: list[int]) -> None:
    train_json_tokenizer(tmp_path, begins=begins)
    path = tmp_path / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    tokenizer = load(tmp_path)
    assert tokenizer.encode("cat") == first + tokenizer.encode("cat", add_bos=False)
    wanted = config.get("add_bos_token", begins)
    assert len(tokenizer.notes) == (tokenizer.bos_id is not None and wanted != begins)


def test_where_special_tokens_are_named(tmp_path: Path) -> None:
    train_json_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").unlink()
    assert (load(tmp_path).bos_id, load(tmp_path).eos_id) == (None, None)
    (tmp_path / "generation_config.json").write_text('{"bos_token_id": 7, "eos_token_id": [8, 9]}')
    assert (load(tmp_path).bos_id, load(tmp_path).eos_id) == (7, 8)
    (tmp_path / "special_tokens_map.json").write_text('{"eos_token": {"content": "<|im_end|>"}}')
    assert load(tmp_path).eos_id == load(tmp_path).token_id("<|im_end|>")
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "</s>", "bos_token": null}')
    assert (load(tmp_path).bos_id, load(tmp_path).eos_id) == (None, load(tmp_path).token_id("<|im_end|>"))
    listed = '{"eos_token": "</s>", "added_tokens_decoder": {"2": {"content": "</s>", "special": true}}}'
    (tmp_path / "tokenizer_config.json").write_text(listed)
    assert load(tmp_path).eos_id == 2
    assert "eos_token is '<|im_end|>' in special_tokens_map.json, '</s>' in" in load(tmp_path).notes[0]


def test_tokens_that_only_the_config_has_are_added(tmp_path: Path) -> None:
    size = load(train_json_tokenizer(tmp_path)).vocab_size
    added = {str(size): {"content": "<think>", "special": False}, "2": {"content": "</s>", "special": True}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": added}))
    tokenizer = load(tmp_path)
    assert tokenizer.encode("a<think>", parse_special=True)[-1] == size
    assert tokenizer.decode([size]) == "<think>"
    added[str(size + 5)] = {"content": "<late>", "special": True}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": added}))
    with pytest.raises(TokenizerError, match=f"'<late>' must get id {size + 5}, but gets {size + 1}"):
        load(tmp_path)


def test_tokenizer_json_wins_unless_it_cannot_be_read(tmp_path: Path) -> None:
    train_tokenizer(tmp_path)
    train_json_tokenizer(tmp_path)
    assert isinstance(load_tokenizer(tmp_path), JsonTokenizer)
    (tmp_path / "tokenizer.json").write_text("{}")
    tokenizer = load_tokenizer(tmp_path)
    assert isinstance(tokenizer, SentencePieceTokenizer)
    assert len(tokenizer.notes) == 1
    assert tokenizer.notes[0].endswith("Model missing. at line 1 column 2; tokenizer.model is used instead")


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{}",
        "[1]",
        "nonsense",
        "[" * 100_000,
        "\ud800",
        '{"model": {}}',
        '{"version": "1.0", "model": {"type": "BPE", "vocab": {}, "merges": ["a b"]}}',
    ],
)
def test_a_broken_file_is_one_line(tmp_path: Path, content: str) -> None:
    (tmp_path / "tokenizer.json").write_bytes(content.encode(errors="surrogatepass"))
    with pytest.raises(TokenizerError, match=r"tokenizer\.json: cannot be read as a tokenizer") as caught:
        load_tokenizer(tmp_path)
    assert "\n" not in str(caught.value)


def after_fuse(step: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", "decoders": [{"type": "Fuse"}, step]}


@pytest.mark.parametrize(
    ("decoder", "message"),
    [
        ({"type": "CTC", "pad_token": "", "word_delimiter_token": "|", "cleanup": True}, "decoder CTC is not supp"),
        (after_fuse({"type": "Replace", "pattern": {"Regex": "a"}, "content": ""}), "Replace of .*'a'.* joins"),
        (after_fuse({"type": "Replace", "pattern": {"String": "ab"}, "content": ""}), "Replace of .*'ab'.* joins"),
        ({"type": "Strip", "content": " ", "start": 0, "stop": 1}, "Strip with a stop is not supported"),
    ],
)
def test_decoders_that_cannot_be_streamed_are_refused(tmp_path: Path, decoder: dict[str, Any], message: str) -> None:
    path = train_json_tokenizer(tmp_path) / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"decoder": decoder}))
    with pytest.raises(TokenizerError, match=message):
        load_tokenizer(tmp_path)


def replacing(old: dict[str, str], new: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": old, "content": new}


@pytest.mark.parametrize(
    ("part", "steps"),
    [
        ("normalizer", [replacing({"String": "a"}, "a" * 101)]),
        ("normalizer", [replacing({"Regex": "$"}, "aa"), *[replacing({"String": "a"}, "a" * 6)] * 2]),
        ("decoder", [replacing({"String": "a"}, "a" * 11)] * 2),
    ],
)
def test_a_file_that_would_blow_text_up_is_refused(tmp_path: Path, part: str, steps: list[dict[str, Any]]) -> None:
    path = train_json_tokenizer(tmp_path) / "tokenizer.json"
    sequence = {"type": "Sequence", f"{part}s": steps}
    path.write_text(json.dumps(json.loads(path.read_text()) | {part: sequence}))
    with pytest.raises(TokenizerError, match="times longer, more than 100"):
        load_tokenizer(tmp_path)


def test_a_link_out_of_the_folder_is_not_followed(tmp_path: Path) -> None:
    other = train_json_tokenizer(tmp_path / "other")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "tokenizer.json").symlink_to(other / "tokenizer.json")
    with pytest.raises(ModelFileError, match=r"tokenizer\.json"):
        load_tokenizer(tmp_path / "model")


@pytest.mark.parametrize(
    "config",
    [
        {"eos_token": 5},
        {"eos_token": {"content": "</s>", "lstrip": "yes"}},
        {"eos_token": {"content": "</s>", "color": True}},
        {"additional_special_tokens": "x"},
        {"additional_special_tokens": [None]},
        {"extra_special_tokens": {"image_token": 1}},
        {"added_tokens_decoder": [1]},
    ],
)
def test_tokens_that_are_none_are_refused(tmp_path: Path, config: dict[str, Any]) -> None:
    train_json_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(TokenizerError, match=r"tokenizer_config\.json: ") as caught:
        load_tokenizer(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_huge_file_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "tokenizer.json").open("wb") as file:
        file.truncate(2**27 + 1)
    with pytest.raises(TokenizerError, match="134,217,729 bytes, more than the 134,217,728"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("added", [{"x": {"content": "a"}}, {"5": {}}, {"5": "a"}, {"9" * 30: {"content": "a"}}])
def test_added_tokens_that_are_none_are_refused(tmp_path: Path, added: dict[str, Any]) -> None:
    train_json_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": added}))
    with pytest.raises(TokenizerError, match=r"tokenizer_config.json: added_tokens_decoder\[.* not a token"):
        load_tokenizer(tmp_path)


def test_a_broken_config_is_a_tokenizer_error(tmp_path: Path) -> None:
    train_json_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(TokenizerError, match=r"tokenizer_config.json: not JSON"):
        load_tokenizer(tmp_path)


def test_half_a_surrogate_pair_is_refused(byte_level: JsonTokenizer) -> None:
    with pytest.raises(TokenizerError, match=r"not valid Unicode at character 2"):
        byte_level.encode("ab\udc80")
