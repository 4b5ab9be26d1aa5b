"""Token ids to text, as they come and at once, and which text is none."""

from collections.abc import Iterable, Sequence

from hybrid.errors import TokenizerError
from hybrid.text.tokenizer import Tokenizer


class TextStream:
    """Token ids in, text out as soon as it is certain; the pieces joined are the text decoded at once.

    `after` is the prompt that the text continues: a leading space depends on it, and a character or word may
    begin there.
    """

    def __init__(self, tokenizer: Tokenizer, after: Sequence[int] = ()) -> None:
        self._decoder = tokenizer.decoder()
        for token_id in after:
            self._decoder.feed(token_id)
        self._shown = self._decoder.pending()  # the end of the prompt, which the decoder still holds

    def feed(self, token_id: int) -> str:
        """The text that is certain after one more id; empty for special tokens and unfinished characters."""
        return self._new(self._decoder.feed(token_id))

    def flush(self) -> str:
        """The end of the text: bytes of a character that never became whole, as U+FFFD."""
        return self._new(self._decoder.flush())

    def _new(self, text: str) -> str:
        """The part of a text that is not the prompt's."""
        if not (text and self._shown):
            return text
        pairs = enumerate(zip(text, self._shown, strict=False))
        shared = next((index for index, (new, old) in pairs if new != old), min(len(text), len(self._shown)))
        self._shown = self._shown[shared:] if shared == len(text) else ""
        return text[shared:]


def decode_all(tokenizer: Tokenizer, ids: Iterable[int]) -> str:
    """The text of token ids, from its beginning: a whole text streamed."""
    decoder = tokenizer.decoder()
    return "".join([decoder.feed(token_id) for token_id in ids]) + decoder.flush()


def check_unicode(text: str) -> None:
    """Refuse text that has no UTF-8, such as half a surrogate pair, with a TokenizerError."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise TokenizerError(f"the text is not valid Unicode at character {error.start}; give it as UTF-8") from None
