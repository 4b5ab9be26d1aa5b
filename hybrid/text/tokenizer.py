"""What a tokenizer is here, how ids become text as they come, and how the tokenizer of a model is found."""

import codecs
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

from hybrid.errors import TokenizerError
from hybrid.text.model_files import home_of
from hybrid.text.special_tokens import SpecialTokens, read_special_tokens

JSON_FILE = "tokenizer.json"
SENTENCEPIECE_FILE = "tokenizer.model"
SPACE = "▁"  # how many vocabularies write a space inside a piece
ESCAPED_BYTE = re.compile("[\udc80-\udcff]")  # what "surrogateescape" makes of a byte that is not UTF-8


class Tokenizer(Protocol):
    """The tokenizer of one model: `JsonTokenizer` or `SentencePieceTokenizer`."""

    @property
    def vocab_size(self) -> int:
        """One more than the largest id."""

    @property
    def bos_id(self) -> int | None:
        """The id of the token that begins texts, if there is one; whether `encode` adds it is the model's choice."""

    @property
    def eos_id(self) -> int | None:
        """The id of the token that ends texts, if there is one."""

    @property
    def special(self) -> SpecialTokens:
        """What the model folder says about special tokens."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What people should know about how it was read, a line each."""

    @property
    def byte_errors(self) -> str:
        """What is shown for bytes that are no UTF-8: "replace", U+FFFD for a run; "surrogateescape", one for each."""

    def encode(self, text: str, add_bos: bool = True, parse_special: bool = False) -> list[int]:
        """Token ids of a text, after the ids that begin every text of this model.

        `parse_special` turns the names of special tokens ("</s>", "<|im_end|>") into their ids, as transformers does
        with every text; else they are plain text, which is what a user's words should be. Raises TokenizerError for
        text that is not valid Unicode.
        """

    def decode(self, ids: Iterable[int]) -> str:
        """The text of token ids: a whole text, from its beginning."""

    def token_id(self, token: str) -> int | None:
        """The id of a token by its name in the vocabulary; None when there is no such token."""

    def piece(self, token_id: int) -> str | bytes:
        """What one id stands for: text with its spaces as "▁", or bytes that need not be whole characters.

        Special tokens have no text, nor have ids past the tokenizer's (embeddings are often padded).
        """

    def strip_first(self, piece: str) -> tuple[str, bool]:
        """A piece at the start of a text without the space that encoding adds, and whether no more may go."""


class TextStream:
    """Token ids in, text out as soon as it is certain; the pieces joined are the text decoded at once.

    `after` is the prompt that the text continues: its last characters decide whether a leading space is kept.
    """

    def __init__(self, tokenizer: Tokenizer, after: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._bytes = codecs.getincrementaldecoder("utf-8")(tokenizer.byte_errors)
        self._at_start = True
        for token_id in after:
            self.feed(token_id)
        self.flush()

    def feed(self, token_id: int) -> str:
        """The text that is certain after one more id; empty for special tokens and unfinished characters."""
        piece = self._tokenizer.piece(token_id)
        if isinstance(piece, bytes):
            return self._mark_invalid(self._bytes.decode(piece))
        text = self.flush()  # an unfinished character cannot go on after a piece
        if self._at_start:
            piece, space_taken = self._tokenizer.strip_first(piece)
            self._at_start = not (piece or space_taken)
        return text + piece.replace(SPACE, " ")

    def flush(self) -> str:
        """The end of the text: bytes of a character that never became whole, as U+FFFD."""
        text = self._bytes.decode(b"", final=True)
        self._bytes.reset()
        return self._mark_invalid(text)

    def _mark_invalid(self, text: str) -> str:
        if text:
            self._at_start = False
        return ESCAPED_BYTE.sub("\ufffd", text)


def decode_all(tokenizer: Tokenizer, ids: Iterable[int]) -> str:
    """The text of token ids, from its beginning: a whole text streamed."""
    stream = TextStream(tokenizer)
    return "".join([stream.feed(token_id) for token_id in ids]) + stream.flush()


def check_unicode(text: str) -> None:
    """Refuse text that has no UTF-8, such as half a surrogate pair, with a TokenizerError."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise TokenizerError(f"the text is not valid Unicode at character {error.start}; give it as UTF-8") from None


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a model folder, or of the folder that a model file lies in.

    `tokenizer.json` wins, as in transformers; `tokenizer.model` (sentencepiece) is read when there is no such file
    or when it cannot be read, which `notes` then tells.
    """
    home = home_of(folder)
    has_json, has_model = (home / JSON_FILE).is_file(), (home / SENTENCEPIECE_FILE).is_file()
    if not has_json and not has_model:
        raise TokenizerError(f"{home}: no {JSON_FILE} and no {SENTENCEPIECE_FILE}; a tokenizer is needed there")
    special = read_special_tokens(home)
    notes: tuple[str, ...] = ()
    if has_json:
        from hybrid.text.json_tokenizer import read_json_tokenizer

        try:
            return read_json_tokenizer(home / JSON_FILE, special)
        except TokenizerError as error:
            if not has_model:
                raise
            notes = (f"{error}; {SENTENCEPIECE_FILE} is used instead",)
    from hybrid.text.sentencepiece_tokenizer import read_sentencepiece

    return read_sentencepiece(home / SENTENCEPIECE_FILE, special, notes)
