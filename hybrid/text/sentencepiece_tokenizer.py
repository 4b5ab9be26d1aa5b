"""A tokenizer.model, over sentencepiece (imported here only, and late)."""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from hybrid.errors import TokenizerError
from hybrid.shown import show
from hybrid.source.folder import real_file
from hybrid.text.added_tokens import AddedToken, TokenFinder
from hybrid.text.decoding import CleanUp, DecodingStep, StreamingDecoder, Utf8
from hybrid.text.detokenizer import check_unicode, decode_all
from hybrid.text.special_tokens import SpecialTokens
from offload.spec.units import counted

_MAX_BYTES = 1 << 26  # Gemma's, one of the largest, has 4 MiB
_TIKTOKEN = re.compile(rb"[A-Za-z0-9+/]+={0,2} \d+\r?\n")
_SPACE = "▁"  # a space inside a piece
_NO_PREFIX = b"\x1a\x02\x18\x00"  # normalizer_spec.add_dummy_prefix = false; what comes later in a protobuf wins


class SentencePieceTokenizer:
    """Text to ids and back with a sentencepiece model, and with the tokens that were added to it later.

    A stretch of text after an added token begins with the model's own leading space, unless the folder says
    `legacy: false`, as in transformers.
    """

    def __init__(self, data: bytes, special: SpecialTokens | None = None, notes: tuple[str, ...] = ()) -> None:
        self._data = data
        self._processor = processor = _processor(data)
        self._trained_size: int = processor.vocab_size()
        self._names: list[str] = processor.id_to_piece(list(range(self._trained_size)))
        self.special = _named(special or SpecialTokens(), processor)
        self._added, self.notes = self._find_added()
        self.notes = (*notes, *self.special.notes, *self.notes)
        self._finders = {
            parse_special: TokenFinder(token for token in self._added.values() if parse_special or not token.special)
            for parse_special in (False, True)
        }
        self._ids = {token.text: token_id for token_id, token in self._added.items()}
        self.vocab_size = max([self._trained_size, *[token_id + 1 for token_id in self._added]])
        self._pieces: dict[int, str | bytes] = {}
        self.bos_id = self._find("bos_token", processor.bos_id())
        self.eos_id = self._find("eos_token", processor.eos_id())
        flags = self.special.flags
        self._begin = [self.bos_id] if self.bos_id is not None and flags.get("add_bos_token", True) else []
        self._legacy = flags.get("legacy", self.special.tokenizer_class != "LlamaTokenizer")
        self._splits_names = flags.get("split_special_tokens", False)
        if flags.get("add_eos_token"):
            self.notes += ("add_eos_token is true, but no end token is added: a prompt goes on",)
        self._makers: list[Callable[[], DecodingStep]] = [partial(PieceDecoder, *self._spaces_stripped())]
        if flags.get("clean_up_tokenization_spaces") and not self._is_byte_pair():
            self._makers.append(CleanUp)

    def encode(self, text: str, add_bos: bool = True, parse_special: bool = False) -> list[int]:
        check_unicode(text)
        ids = list(self._begin) if add_bos else []
        processor = self._processor
        for part in self._finders[parse_special and not self._splits_names].split(text):
            if isinstance(part, AddedToken):
                ids.append(self._ids[part.text])
                processor = self._processor if self._legacy else self._without_prefix
            else:
                ids.extend(processor.encode(part))
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        return decode_all(self, ids)

    def token_id(self, token: str) -> int | None:
        if token in self._ids:
            return self._ids[token]
        token_id = int(self._processor.piece_to_id(token))
        return None if self._processor.is_unknown(token_id) else token_id

    def is_hidden(self, token_id: int) -> bool:
        return not self._piece(token_id)

    def decoder(self) -> StreamingDecoder:
        return StreamingDecoder(self._piece, [make() for make in self._makers])

    @cached_property
    def _without_prefix(self) -> Any:
        return _processor(self._data + _NO_PREFIX)

    def _piece(self, token_id: int) -> str | bytes:
        """Give the piece of an id: text with its spaces as "▁", or a byte; "" for what is never shown."""
        known = self._pieces.get(token_id)
        if known is None:
            known = self._pieces[token_id] = self._read_piece(token_id)
        return known

    def _read_piece(self, token_id: int) -> str | bytes:
        processor = self._processor
        if token_id in self._added:
            return "" if self._added[token_id].special else self._added[token_id].text
        if not 0 <= token_id < self._trained_size:
            return ""
        if processor.is_byte(token_id):
            return bytes([int(self._names[token_id][3:5], 16)])  # "<0xE2>"
        if processor.is_unknown(token_id):
            return str(processor.decode([token_id]))
        return self._names[token_id]

    def _find_added(self) -> tuple[dict[int, AddedToken], tuple[str, ...]]:
        """The tokens that are looked for in text before the model sees it, by id, and notes on them.

        Control pieces; what the folder lists, under a new name where the model has a placeholder; and roles, which
        get the next id where nobody knows them.
        """
        processor, special = self._processor, self.special
        control = [
            token_id for token_id, is_it in enumerate(processor.is_control(list(range(self._trained_size)))) if is_it
        ]
        found = {token_id: AddedToken(self._names[token_id]) for token_id in control}
        roles = {token.text for token in special.roles}
        notes = []
        for token in (*special.added, *special.roles, *special.extra):
            trained = int(processor.piece_to_id(token.text))
            token_id = None if processor.is_unknown(trained) and self._names[trained] != token.text else trained
            if token_id is None:
                known = next((known for known, other in found.items() if other.text == token.text), token.token_id)
                token_id = max([self._trained_size - 1, *found]) + 1 if known is None else known
            elif token.token_id not in (None, token_id):
                notes.append(
                    f"token {show(token.text)} has id {token_id} in tokenizer.model, {token.token_id} elsewhere"
                )
            if token.token_id is not None or token_id not in found:
                found[token_id] = token.as_special() if token.text in roles else token
        return found, tuple(notes)

    def _find(self, role: str, trained_id: int) -> int | None:
        """The id of a special token: as the folder names it, else the model's own."""
        name = self.special.names.get(role)
        named = self.token_id(name) if name else None
        if named is not None:
            return named
        return trained_id if trained_id >= 0 else None

    def _spaces_stripped(self) -> tuple[bool, bool]:
        """Tell whether a text loses a leading space, and whether several: read off the model's own encoding."""
        processor = self._processor
        space = processor.piece_to_id(_SPACE)
        several = not processor.is_unknown(space) and processor.decode([space, space]) == ""
        first = next(
            (i for i, name in enumerate(self._names) if name.startswith(_SPACE) and i not in self._added), None
        )
        one = first is not None and processor.decode([first]) != self._names[first].replace(_SPACE, " ")
        return one or several, several

    def _is_byte_pair(self) -> bool:
        """Tell whether the model merges pairs: it scores its pieces by rank, others by logarithms."""
        return all(float(score).is_integer() for score in self._processor.get_score(list(range(self._trained_size))))


class PieceDecoder(Utf8):
    """Pieces in, text out: without the space that encoding adds at the start, single bytes as characters."""

    def __init__(self, strips: bool, strips_all: bool) -> None:
        super().__init__(each=True)
        self._strips = strips
        self._strips_all = strips_all

    def feed(self, piece: str | bytes) -> Sequence[str]:
        if isinstance(piece, bytes):
            text = self.add(piece)
            self._strips &= not text
            return text
        text = self.flush()  # an unfinished character cannot go on after a piece
        self._strips &= not text
        if self._strips and piece.startswith(_SPACE):
            piece = piece[1:]
            self._strips = self._strips_all
        self._strips &= not piece
        return [*text, piece.replace(_SPACE, " ")]


def _named(special: SpecialTokens, processor: Any) -> SpecialTokens:
    """Special tokens with the model's own names for those that the folder does not speak of."""
    own = {"bos_token": processor.bos_id(), "eos_token": processor.eos_id(), "unk_token": processor.unk_id()}
    names = {role: str(processor.id_to_piece(token_id)) for role, token_id in own.items() if token_id >= 0}
    return replace(special, names={**names, **special.names})


def _processor(data: bytes) -> Any:
    from sentencepiece import SentencePieceProcessor

    processor = SentencePieceProcessor()
    processor.load_from_serialized_proto(data)
    return processor


def read_sentencepiece(path: Path, special: SpecialTokens, notes: tuple[str, ...] = ()) -> SentencePieceTokenizer:
    """Read a tokenizer.model, or raise TokenizerError or ModelFileError."""
    real = real_file(path)
    try:
        with real.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
        if len(data) > _MAX_BYTES:
            size = real.stat().st_size
            raise TokenizerError(
                f"{path}: {counted(size, 'byte')}, more than the {_MAX_BYTES:,} a sentencepiece model may have"
            )
        if _TIKTOKEN.match(data):
            raise TokenizerError(
                f"{path}: a tiktoken vocabulary, which is not read; get the tokenizer.json of the model"
            )
        return SentencePieceTokenizer(data, special, notes)
    except UnicodeDecodeError:
        raise TokenizerError(f"{path}: cannot be read as a sentencepiece model: a piece is not UTF-8") from None
    except (RuntimeError, OSError) as error:
        reason = " ".join(str(error).split())
        raise TokenizerError(f"{path}: cannot be read as a sentencepiece model: {reason}") from None
