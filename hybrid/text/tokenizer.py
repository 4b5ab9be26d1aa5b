"""The protocol of a tokenizer."""

from collections.abc import Iterable
from typing import Protocol

from hybrid.text.decoding import StreamingDecoder
from hybrid.text.special_tokens import SpecialTokens


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
        """Give the special tokens that the model folder declares."""

    @property
    def notes(self) -> tuple[str, ...]:
        """List remarks for people on how it was read, a line each."""

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
        """Tell whether an id has no text: special tokens, and ids past the tokenizer's (often padded)."""

    def decoder(self) -> StreamingDecoder:
        """Make a decoder that turns the ids of a text into its characters, from the beginning."""
