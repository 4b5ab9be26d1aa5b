"""Conversations in chatml with a model that gives the replies of a test."""

from pathlib import Path

import pytest

from hybrid.chat.conversation import Conversation, Template
from hybrid.chat.reply import ReplyRules
from hybrid.text.chat_template import ChatTemplate, load_chat_template
from hybrid.text.open_tokenizer import load_tokenizer
from hybrid.text.sampling import SamplingSettings
from hybrid.text.tokenizer import Tokenizer
from tests.chat.recorder import Recorder, Talk
from tests.fakes import EOS, train_json_tokenizer


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_json_tokenizer(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def tokenizer(model: Path) -> Tokenizer:
    return load_tokenizer(model)


@pytest.fixture(scope="session")
def chatml(model: Path, tokenizer: Tokenizer) -> ChatTemplate:
    template = load_chat_template(model, tokenizer, "chatml")
    assert template is not None
    return template


@pytest.fixture
def talk(tokenizer: Tokenizer, chatml: ChatTemplate) -> Talk:
    """A conversation in chatml with a model that gives these replies."""

    def make(
        *replies: str | list[int],
        context: int = 2000,
        template: Template | None = None,
        system: str | None = None,
        max_tokens: int = 100,
        stop_words: tuple[str, ...] = (),
        chunk: int = 512,
    ) -> tuple[Conversation, Recorder]:
        ids = [
            [*(tokenizer.encode(reply, add_bos=False) if isinstance(reply, str) else reply), EOS] for reply in replies
        ]
        engine = Recorder(ids, context)
        rules = ReplyRules(SamplingSettings(), max_tokens, (EOS,), stop_words, chunk)
        return Conversation(engine, tokenizer, template or chatml, rules, system), engine

    return make
