"""The conversation as text and as token ids: what the cache stands for."""

from dataclasses import dataclass

from hybrid.text.tokenizer import Tokenizer
from hybrid.text.turns import encode_turn


@dataclass(frozen=True)
class _Mark:
    """A place where the text and the ids are known to stand for the same."""

    characters: int
    tokens: int
    after_reply: bool


class Transcript:
    """The last prompt and the reply to it, as the ids that were run and generated.

    The cache holds a beginning of `ids`; the engine's position tells how long a one. Marks at the end of each prompt
    and reply let an older state of the conversation (undo, retry) find its own ids again.

    `plain`: the text is continued without a template, and begins as every text of the model does.
    """

    def __init__(self, tokenizer: Tokenizer, plain: bool = False) -> None:
        self.ids: list[int] = []
        self._tokenizer = tokenizer
        self._plain = plain
        self._text = ""
        self._marks: list[_Mark] = []

    def encode(self, rendered: str) -> list[int]:
        """Ids of a rendered conversation; those of its past are kept wherever its text is the same."""
        for mark in reversed(self._marks):
            past = self._text[: mark.characters]
            if rendered == past:
                return self.ids[: mark.tokens]
            if mark.after_reply and not self._plain and rendered.startswith(past):
                return encode_turn(self._tokenizer, rendered, self.ids[: mark.tokens], past)
        return self._tokenizer.encode(rendered) if self._plain else encode_turn(self._tokenizer, rendered)

    def ask(self, rendered: str, ids: list[int]) -> None:
        """From now on the transcript is this prompt."""
        self._marks = [
            mark
            for mark in self._marks
            if rendered.startswith(self._text[: mark.characters]) and ids[: mark.tokens] == self.ids[: mark.tokens]
        ]
        self._text, self.ids = rendered, list(ids)
        self._mark(after_reply=False)

    def answer(self, text: str) -> None:
        """The reply is at its end. Its ids were appended to `ids` as they came; `text` is all they stand for."""
        self._text += text
        self._mark(after_reply=True)

    def _mark(self, after_reply: bool) -> None:
        self._marks.append(_Mark(len(self._text), len(self.ids), after_reply))
