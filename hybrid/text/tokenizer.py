"""What a tokenizer is here, how ids become text as they come, and how the tokenizer of a model is found."""

from collections.abc import Iterable, Sequence
from operator import attrgetter
from pathlib import Path
from typing import Protocol

from hybrid.errors import TokenizerError
from hybrid.source.folder import listed
from hybrid.text.decoding import StreamingDecoder
from hybrid.text.model_files import home_of
from hybrid.text.special_tokens import SpecialTokens, read_special_tokens

JSON_FILE = "tokenizer.json"
SENTENCEPIECE_FILE = "tokenizer.model"
_OTHER_FILES = ("*.tiktoken", "tiktoken.model", "tekken.json", "vocab.json", "merges.txt", "vocab.txt", "sp*.model")


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

    def is_hidden(self, token_id: int) -> bool:
        """Whether an id has no text: special tokens, and ids past the tokenizer's (embeddings are often padded)."""

    def decoder(self) -> StreamingDecoder:
        """What turns the ids of a text into its characters, from the beginning."""


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


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a model folder, or of the folder that a model file lies in.

    `tokenizer.json` wins, as in transformers; `tokenizer.model` (sentencepiece) is read when there is no such file
    or when it cannot be read, which `notes` then tells.
    """
    home = home_of(folder)
    has_json, has_model = (home / JSON_FILE).is_file(), (home / SENTENCEPIECE_FILE).is_file()
    if not has_json and not has_model:
        raise TokenizerError(f"{home}: no {JSON_FILE} and no {SENTENCEPIECE_FILE}; {_other_files(home)}")
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


def _other_files(home: Path) -> str:
    """What to do about a folder with neither file, by the files of other kinds that it has."""
    found = sorted(name for kind in _OTHER_FILES for name in map(attrgetter("name"), home.glob(kind)))
    if not found:
        return "a tokenizer is needed there"
    return f"{listed(found)} cannot be read; save_pretrained() of the tokenizer in transformers writes a {JSON_FILE}"
