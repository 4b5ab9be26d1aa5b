"""A tokenizer.model, over sentencepiece (imported here only, and late)."""

import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from hybrid.errors import TokenizerError
from hybrid.text.special_tokens import SpecialTokens
from hybrid.text.tokenizer import SPACE, check_unicode, decode_all

_MAX_BYTES = 1 << 26  # Gemma's, one of the largest, has 4 MiB


class SentencePieceTokenizer:
    """Text to ids and back with a sentencepiece model, and with the tokens that were added to it later.

    Between special tokens, each stretch of text begins with the model's own leading space, as in llama.cpp.
    """

    byte_errors = "surrogateescape"  # one U+FFFD for each byte, as sentencepiece does

    def __init__(self, processor: Any, special: SpecialTokens | None = None, notes: tuple[str, ...] = ()) -> None:
        self._processor = processor
        self.special = _named(special or SpecialTokens(), processor)
        self.notes = notes
        self._trained_size: int = processor.vocab_size()
        self._added = {token.token_id: token for token in self.special.added if token.token_id >= self._trained_size}
        self.vocab_size = max([self._trained_size, *[token_id + 1 for token_id in self._added]])
        self._pieces: dict[int, str | bytes] = {}
        self._token_ids = self._find_parsed()
        longest_first = sorted(self._token_ids, key=len, reverse=True)
        self._parsed = re.compile("(" + "|".join(map(re.escape, longest_first)) + ")")
        self.bos_id = self._find("bos_token", processor.bos_id())
        self.eos_id = self._find("eos_token", processor.eos_id())
        self._adds_bos = self.bos_id is not None and self.special.add_bos is not False
        # Two rules of the model are not readable from Python, so they are read off what it does with them.
        space = processor.piece_to_id(SPACE)
        has_space = not processor.is_unknown(space)
        self._strips_all_spaces = has_space and processor.decode([space, space]) == ""
        self._strips_one_space = self._find_strips_one_space()

    def encode(self, text: str, add_bos: bool = True, parse_special: bool = False) -> list[int]:
        check_unicode(text)
        ids = [self.bos_id] if add_bos and self._adds_bos and self.bos_id is not None else []
        parts = self._parsed.split(text) if parse_special and self._token_ids else [text]
        for index, part in enumerate(parts):  # every second one is a special token
            if index % 2:
                ids.append(self._token_ids[part])
            elif part:
                ids.extend(self._processor.encode(part))
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        return decode_all(self, ids)

    def token_id(self, token: str) -> int | None:
        if token in self._token_ids:
            return self._token_ids[token]
        token_id = int(self._processor.piece_to_id(token))
        return None if self._processor.is_unknown(token_id) else token_id

    def piece(self, token_id: int) -> str | bytes:
        known = self._pieces.get(token_id)
        if known is None:
            known = self._pieces[token_id] = self._read_piece(token_id)
        return known

    def strip_first(self, piece: str) -> tuple[str, bool]:
        if piece.startswith(SPACE) and (self._strips_one_space or self._strips_all_spaces):
            return piece[1:], not self._strips_all_spaces
        return piece, False

    def _read_piece(self, token_id: int) -> str | bytes:
        processor = self._processor
        if token_id in self._added:
            return "" if self._added[token_id].special else self._added[token_id].text
        if not 0 <= token_id < self._trained_size or processor.is_control(token_id):
            return ""
        if processor.is_byte(token_id):
            return bytes([int(processor.id_to_piece(token_id)[3:5], 16)])  # "<0xE2>"
        if processor.is_unknown(token_id):
            return str(processor.decode([token_id]))
        return str(processor.id_to_piece(token_id))

    def _find_parsed(self) -> dict[str, int]:
        """Names of the tokens that parsing special tokens finds: control pieces, and what was added."""
        processor = self._processor
        control = [token_id for token_id in range(self._trained_size) if processor.is_control(token_id)]
        found = {str(processor.id_to_piece(token_id)): token_id for token_id in control}
        return found | {token.text: token.token_id for token in self._added.values()}

    def _find(self, role: str, trained_id: int) -> int | None:
        """The id of a special token: as the folder names it, else the model's own."""
        name = self.special.names.get(role)
        named = self.token_id(name) if name else None
        if named is not None:
            return named
        return trained_id if trained_id >= 0 else None

    def _find_strips_one_space(self) -> bool:
        for token_id in range(self._trained_size):
            piece = self.piece(token_id)
            if isinstance(piece, str) and piece.startswith(SPACE):
                return bool(self._processor.decode([token_id]) != piece.replace(SPACE, " "))
        return False


def _named(special: SpecialTokens, processor: Any) -> SpecialTokens:
    """Special tokens with the model's own names for those that the folder does not speak of."""
    own = {"bos_token": processor.bos_id(), "eos_token": processor.eos_id(), "unk_token": processor.unk_id()}
    names = {role: str(processor.id_to_piece(token_id)) for role, token_id in own.items() if token_id >= 0}
    return replace(special, names={**names, **special.names})


def read_sentencepiece(path: Path, special: SpecialTokens, notes: tuple[str, ...] = ()) -> SentencePieceTokenizer:
    """Read a tokenizer.model, or raise TokenizerError."""
    try:
        size = path.stat().st_size
        if size > _MAX_BYTES:
            raise TokenizerError(f"{path}: {size} bytes, more than the {_MAX_BYTES} a sentencepiece model may have")
        from sentencepiece import SentencePieceProcessor

        processor = SentencePieceProcessor()
        processor.load_from_serialized_proto(path.read_bytes())
    except (RuntimeError, OSError) as error:
        reason = " ".join(str(error).split())
        raise TokenizerError(f"{path}: cannot be read as a sentencepiece model: {reason}") from None
    return SentencePieceTokenizer(processor, special, notes)
