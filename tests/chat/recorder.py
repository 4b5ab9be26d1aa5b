"""An engine that recites and writes down what it was asked, and what its conversations are looked at with."""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from hybrid.chat.conversation import Conversation
from hybrid.chat.reply import Reply
from hybrid.text.chat_template import ChatTemplate, Message
from hybrid.text.tokenizer import Tokenizer
from tests.fakes import EOS, VOCAB, Unshared


class Recorder(Unshared):
    """An engine that says its replies one after another, and remembers every call and what its cache holds."""

    def __init__(self, replies: Sequence[Sequence[int]], context_tokens: int = 2000) -> None:
        self.replies = [list(reply) for reply in replies]
        self.context_tokens = context_tokens
        self.cache: list[int] = []
        self.prefilled: list[list[int]] = []
        self.trims: list[int] = []
        self.on_decode: Callable[[], None] = lambda: None
        self.on_prefill: Callable[[], None] = lambda: None
        self._going: list[int] = []

    def prefill(self, token_ids: Sequence[int]) -> npt.NDArray[np.float32]:
        assert token_ids
        assert self.position + len(token_ids) <= self.context_tokens
        self.on_prefill()
        self.cache += token_ids
        self.prefilled.append(list(token_ids))
        self._going = list(self.replies[0]) if self.replies else []
        return self._next()

    def decode(self, token_id: int) -> npt.NDArray[np.float32]:
        assert self.position < self.context_tokens
        self.on_decode()
        self.cache.append(token_id)
        return self._next()

    def trim(self, length: int) -> None:
        assert 0 <= length <= self.position
        self.trims.append(length)
        del self.cache[length:]

    def _next(self) -> npt.NDArray[np.float32]:
        logits = np.zeros(VOCAB, np.float32)
        logits[self._going.pop(0) if self._going else EOS] = 50.0  # so likely that it is drawn at any temperature
        if not self._going and self.replies:
            self.replies.pop(0)
        return logits


Talk = Callable[..., tuple[Conversation, Recorder]]


def said(reply: Reply) -> str:
    return "".join(reply)


def whole(tokenizer: Tokenizer, chatml: ChatTemplate, *contents: str, ask: bool = True) -> list[int]:
    """Ids of a conversation that never was anything else."""
    messages = [Message(("user", "assistant")[number % 2], content) for number, content in enumerate(contents)]
    return tokenizer.encode(chatml.render(messages, ask), add_bos=False, parse_special=True)
