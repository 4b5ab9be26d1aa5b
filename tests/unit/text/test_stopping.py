"""Which ids end a text: worked out by hand for each source."""

import json
from pathlib import Path

import pytest

from hybrid.chat.opening import open_conversation
from hybrid.errors import ModelConfigError
from hybrid.text.builtin_templates import BUILT_IN
from hybrid.text.chat_template import ChatTemplate
from hybrid.text.generation_defaults import GenerationDefaults, read_generation_defaults
from hybrid.text.open_tokenizer import load_tokenizer
from hybrid.text.sampling import SamplingSettings
from hybrid.text.stopping import end_ids
from hybrid.text.text_model import TextModel
from hybrid.text.tokenizer import Tokenizer
from tests.fakes import EOS, FakeEngine, train_json_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return load_tokenizer(train_json_tokenizer(tmp_path_factory.mktemp("tokenizer")))


def chatml() -> ChatTemplate:
    return ChatTemplate(BUILT_IN["chatml"], {}, "chatml")


def test_the_first_source_that_names_one_counts(tokenizer: Tokenizer) -> None:
    assert end_ids(GenerationDefaults((7, 8)), (9,), tokenizer, None) == (7, 8)
    assert end_ids(GenerationDefaults(), (9,), tokenizer, None) == (9,)
    assert end_ids(GenerationDefaults(), (), tokenizer, None) == (tokenizer.eos_id,) == (2,)


def test_ends_of_turn_are_added_where_the_model_has_none_of_them(tokenizer: Tokenizer) -> None:
    turn_end = tokenizer.token_id("<|im_end|>")
    assert turn_end is not None
    assert end_ids(GenerationDefaults(), (9,), tokenizer, chatml()) == (9, turn_end)
    two = ChatTemplate(BUILT_IN["chatml"] + "{# <|end|> <|eot_id|> #}", {}, "two")
    two.end_ids = lambda tokenizer: (turn_end, 5)  # type: ignore[method-assign]
    assert end_ids(GenerationDefaults((9, 5)), (), tokenizer, two) == (9, 5)  # <|im_end|> may stand in mid-reply


def test_chat_and_completions_end_alike(tokenizer: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [7, 7]}')
    engine = FakeEngine([])
    model = TextModel(engine, tokenizer, read_generation_defaults(tmp_path), chatml())  # type: ignore[arg-type]
    chat = open_conversation(engine, tokenizer, tmp_path, chatml(), SamplingSettings(), 5)  # type: ignore[arg-type]
    assert model.stop_ids == chat.rules.stop_ids == (7, tokenizer.token_id("<|im_end|>"))
    assert EOS not in model.stop_ids  # config.json's; generation_config.json goes before it


def test_genai_config_names_ends_where_generation_config_does_not(tmp_path: Path) -> None:
    (tmp_path / "genai_config.json").write_text(json.dumps({"model": {"eos_token_id": [3, 4]}}))
    assert read_generation_defaults(tmp_path).end_ids == (3, 4)
    (tmp_path / "generation_config.json").write_text("{}")
    assert read_generation_defaults(tmp_path).end_ids == (3, 4)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": 5}')
    assert read_generation_defaults(tmp_path).end_ids == (5,)


@pytest.mark.parametrize("content", ['{"model": {"eos_token_id": "x"}}', '{"model": {"eos_token_id": [true]}}'])
def test_ends_that_are_no_ids_are_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "genai_config.json").write_text(content)
    with pytest.raises(ModelConfigError, match=r"genai_config\.json: eos_token_id is"):
        read_generation_defaults(tmp_path)
