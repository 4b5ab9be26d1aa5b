"""A tokenizer.model: against sentencepiece itself, piece by piece and at once; and which file is read."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybrid.errors import ModelFileError, TokenizerError
from hybrid.text.detokenizer import TextStream
from hybrid.text.open_tokenizer import load_tokenizer
from hybrid.text.sentencepiece_tokenizer import SentencePieceTokenizer
from tests.fakes import train_tokenizer

MODELS = Path(__file__).parents[4] / "shared" / "models"
REAL = ("llama2-tokenizer", "stories260K", "babyllama-tok105-1M")
BYTE_0 = 3  # id of <0x00> in every model here that has byte pieces


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> SentencePieceTokenizer:
    return load(train_tokenizer(tmp_path_factory.mktemp("tiny")))


@pytest.fixture(scope="session", params=("tiny", *REAL))
def tokenizer(request: pytest.FixtureRequest, tiny: SentencePieceTokenizer) -> SentencePieceTokenizer:
    if request.param == "tiny":
        return tiny
    folder = MODELS / request.param
    if not folder.is_dir():
        pytest.skip(f"no {folder}: trained tokenizers are not part of the project")
    return load(folder)


def load(folder: Path) -> SentencePieceTokenizer:
    tokenizer = load_tokenizer(folder)
    assert isinstance(tokenizer, SentencePieceTokenizer)
    return tokenizer


def streamed(tokenizer: SentencePieceTokenizer, ids: list[int], after: list[int] | None = None) -> list[str]:
    stream = TextStream(tokenizer, after or [])
    return [*[stream.feed(token_id) for token_id in ids], stream.flush()]


def byte_ids(data: bytes) -> list[int]:
    return [BYTE_0 + byte for byte in data]


@given(data=st.data())
def test_any_ids_stream_to_the_text_that_sentencepiece_gives(
    tokenizer: SentencePieceTokenizer, data: st.DataObject
) -> None:
    low = st.integers(0, min(270, tokenizer.vocab_size) - 1)  # control, unknown and byte pieces
    ids = data.draw(st.lists(low | st.integers(0, tokenizer.vocab_size - 1), max_size=30))
    text = "".join(streamed(tokenizer, ids))
    assert text == tokenizer.decode(ids)
    assert text == tokenizer._processor.decode(ids)


@given(data=st.data())
def test_a_prompt_and_its_continuation_read_like_one_text(
    tokenizer: SentencePieceTokenizer, data: st.DataObject
) -> None:
    prompt = tokenizer.encode(data.draw(st.text(max_size=20)))
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=20))
    whole = tokenizer.decode(prompt) + "".join(streamed(tokenizer, ids, after=prompt))
    assert whole == tokenizer.decode(prompt + ids)


@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=30))
def test_encoding_keeps_to_the_vocabulary_and_adds_bos(tiny: SentencePieceTokenizer, text: str) -> None:
    ids = tiny.encode(text)
    assert ids == [tiny.bos_id, *tiny.encode(text, add_bos=False)]
    assert all(0 <= token_id < tiny.vocab_size for token_id in ids)


def test_a_character_in_bytes_comes_whole(tiny: SentencePieceTokenizer) -> None:
    assert streamed(tiny, byte_ids("€é".encode())) == ["", "", "€", "", "é", ""]


def test_bytes_that_are_no_text_become_replacement_characters(tiny: SentencePieceTokenizer) -> None:
    cat = tiny.encode(" cat", add_bos=False)
    unfinished = byte_ids(b"\xe2\x82")
    assert "".join(streamed(tiny, unfinished)) == "\ufffd\ufffd"
    assert "".join(streamed(tiny, unfinished + cat)).startswith("\ufffd\ufffd ")
    assert streamed(tiny, byte_ids(b"\xff!")) == ["\ufffd", "!", ""]


def test_control_tokens_and_padding_have_no_text(tiny: SentencePieceTokenizer) -> None:
    ids = tiny.encode("the cat")
    assert tiny.bos_id is not None
    assert tiny.eos_id is not None
    assert tiny.decode([*ids, tiny.eos_id, tiny.vocab_size, tiny.vocab_size + 1000, -1]) == "the cat"


def test_a_continuation_keeps_its_leading_space_and_a_beginning_does_not(tiny: SentencePieceTokenizer) -> None:
    cat = tiny.encode("cat", add_bos=False)
    assert "".join(streamed(tiny, cat)) == "cat"
    assert "".join(streamed(tiny, cat, after=tiny.encode("the"))) == " cat"
    assert "".join(streamed(tiny, cat, after=tiny.encode(""))) == "cat"


def test_known_ids_of_a_trained_model() -> None:
    folder = MODELS / "stories260K"
    if not folder.is_dir():
        pytest.skip(f"no {folder}: trained tokenizers are not part of the project")
    tokenizer = load_tokenizer(folder)
    assert tokenizer.encode("Once upon a time") == [1, 403, 407, 261, 378]
    assert (tokenizer.vocab_size, tokenizer.bos_id, tokenizer.eos_id) == (512, 1, 2)


def test_text_that_looks_like_a_control_token_stays_text(tiny: SentencePieceTokenizer) -> None:
    assert tiny.eos_id not in tiny.encode("</s>")
    assert tiny.decode(tiny.encode("the</s>")) == "the</s>"


def test_half_a_surrogate_pair_is_refused(tiny: SentencePieceTokenizer) -> None:
    with pytest.raises(TokenizerError, match=r"not valid Unicode at character 2"):
        tiny.encode("ab\udc80")


def test_a_model_file_leads_to_the_tokenizer_beside_it(tmp_path: Path) -> None:
    train_tokenizer(tmp_path)
    (tmp_path / "model.onnx").touch()
    assert load_tokenizer(tmp_path / "model.onnx").decode([BYTE_0 + ord("a")]) == "a"


@pytest.mark.parametrize("content", [b"", b"not a model", b"\x0a\x0e\x0a\x05<unk>"])
def test_a_broken_model_is_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "tokenizer.model").write_bytes(content)
    with pytest.raises(TokenizerError, match="cannot be read as a sentencepiece model") as caught:
        load_tokenizer(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_cut_off_model_is_one_line(tmp_path: Path) -> None:
    path = train_tokenizer(tmp_path) / "tokenizer.model"
    path.write_bytes(path.read_bytes()[:2001])
    with pytest.raises(TokenizerError, match="cannot be read as a sentencepiece model"):
        load_tokenizer(tmp_path)


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=r"no tokenizer\.json and no tokenizer\.model"):
        load_tokenizer(tmp_path)
    with pytest.raises(ModelFileError, match="no such model folder"):
        load_tokenizer(tmp_path / "absent")
    with pytest.raises(ModelFileError, match="cannot be opened"):
        load_tokenizer(tmp_path / ("x" * 300))


def test_a_piece_that_is_not_utf_8_is_refused(tmp_path: Path) -> None:
    path = train_tokenizer(tmp_path) / "tokenizer.model"
    path.write_bytes(path.read_bytes().replace("▁the".encode(), b"\xff\xfe\xfdthe", 1))
    with pytest.raises(TokenizerError, match=r"tokenizer\.model: .* a piece is not UTF-8"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("tokenizer.model", b"IQ== 0\nIg== 1\n", "a tiktoken vocabulary"),
        ("qwen.tiktoken", b"IQ== 0\n", r"qwen\.tiktoken cannot be read"),
        ("tekken.json", b"{}", r"tekken\.json cannot be read"),
        ("vocab.json", b"{}", r"vocab\.json cannot be read; save_pretrained\(\)"),
    ],
)
def test_vocabularies_of_other_kinds_are_named(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(TokenizerError, match=said):
        load_tokenizer(tmp_path)


def test_a_huge_model_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "tokenizer.model").open("wb") as file:
        file.truncate(2**26 + 1)
    with pytest.raises(TokenizerError, match=r"tokenizer.model: 67,108,865 bytes, more than the 67,108,864"):
        load_tokenizer(tmp_path)


def test_special_tokens_are_parsed_when_asked(tiny: SentencePieceTokenizer) -> None:
    cat, mat = tiny.encode("the cat", add_bos=False), tiny.encode("mat", add_bos=False)
    assert tiny.encode("<s>the cat</s>mat", add_bos=False, parse_special=True) == [1, *cat, 2, *mat]
    assert tiny.encode("the cat", parse_special=True) == [1, *cat]


def test_tokens_that_were_added_later(tmp_path: Path) -> None:
    train_tokenizer(tmp_path)
    size = load(tmp_path).vocab_size
    listed = {str(size): {"content": "<|im_start|>", "special": True}, str(size + 1): {"content": "<think>"}}
    config = {"added_tokens_decoder": listed, "eos_token": "<|im_start|>", "add_bos_token": False}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = load(tmp_path)
    cat = tokenizer.encode("cat")
    assert cat[0] != tokenizer.bos_id
    ids = tokenizer.encode("<|im_start|><think>cat", parse_special=True)
    assert ids == [size, size + 1, *cat]
    assert tokenizer.decode(ids) == "<think> cat"
    assert (tokenizer.vocab_size, tokenizer.eos_id, tokenizer.token_id("<think>")) == (size + 2, size, size + 1)
    assert tokenizer.token_id("never heard of") is None
    assert size not in tokenizer.encode("<|im_start|>cat")
