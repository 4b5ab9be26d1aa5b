"""A tokenizer.json, over the `tokenizers` library (imported here only, and late)."""

import json
import threading
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hybrid.errors import TokenizerError
from hybrid.text.special_tokens import SpecialTokens
from hybrid.text.tokenizer import SPACE, check_unicode, decode_all

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend

_MAX_BYTES = 1 << 27  # Gemma 3's, one of the largest, has 33 MiB


class JsonTokenizer:
    """Text to ids and back as a tokenizer.json says.

    Pieces are either bytes (byte-level vocabularies: GPT-2, Llama 3, Qwen) or text with single bytes as a fallback
    (Llama 2, Mistral, Gemma). Where those bytes are no UTF-8, one U+FFFD is shown for each bad one, as sentencepiece
    does; `tokenizers` gives up the good ones of the same run too, which cannot be known while it streams.
    """

    def __init__(self, backend: "Backend", special: SpecialTokens) -> None:
        self._backend = backend
        self.special = _named(special, backend)
        self.notes: tuple[str, ...] = ()
        self._lock = threading.Lock()
        self._add_missing()
        added = backend.get_added_tokens_decoder()
        self.vocab_size = max([backend.get_vocab_size(with_added_tokens=True), *[token_id + 1 for token_id in added]])
        self._hidden = {token_id for token_id, token in added.items() if token.special}
        self.bos_id = self._find("bos_token")
        self.eos_id = self._find("eos_token")
        self._begin = self._find_begin()
        self._decoder = _Decoder(_state(backend.decoder))
        self.byte_errors = "replace" if self._decoder.byte_level else "surrogateescape"
        self._pieces: dict[int, str | bytes] = {}

    def encode(self, text: str, add_bos: bool = True, parse_special: bool = False) -> list[int]:
        check_unicode(text)
        with self._lock:  # whether names of special tokens are text is a setting of the whole tokenizer
            self._backend.encode_special_tokens = not parse_special
            try:
                ids: list[int] = self._backend.encode(text, add_special_tokens=False).ids
            except Exception as error:  # a vocabulary with holes and no <unk>
                raise TokenizerError(f"the text cannot be written in this vocabulary: {_one_line(error)}") from None
        return [*self._begin, *ids] if add_bos else ids

    def decode(self, ids: Iterable[int]) -> str:
        return decode_all(self, ids)

    def token_id(self, token: str) -> int | None:
        return self._backend.token_to_id(token)

    def piece(self, token_id: int) -> str | bytes:
        known = self._pieces.get(token_id)
        if known is None:
            known = self._pieces[token_id] = self._read_piece(token_id)
        return known

    def strip_first(self, piece: str) -> tuple[str, bool]:
        if self._decoder.strips_first and piece.startswith(SPACE):
            return piece[1:], True
        return piece, False

    def _read_piece(self, token_id: int) -> str | bytes:
        if not 0 <= token_id < 2**32 or token_id in self._hidden:
            return b""  # and not "": a hidden token may stand between the bytes of a character
        token = self._backend.id_to_token(token_id)
        return b"" if token is None else self._decoder.piece(token)

    def _add_missing(self) -> None:
        """Add what only tokenizer_config.json knows, as transformers does; the library counts the ids on."""
        from tokenizers import AddedToken

        for token in self.special.added:
            if self._backend.token_to_id(token.text) is None:
                self._backend.add_tokens([AddedToken(token.text, special=token.special, normalized=False)])
                given = self._backend.token_to_id(token.text)
                if given != token.token_id:
                    raise TokenizerError(f"added token {token.text!r} must get id {token.token_id}, but gets {given}")

    def _find(self, role: str) -> int | None:
        name = self.special.names.get(role)
        return self._backend.token_to_id(name) if name else None

    def _find_begin(self) -> list[int]:
        """The ids that begin every text: as tokenizer_config.json says, else as the file's post-processor does."""
        if self.special.add_bos is False:
            return []
        encoding = self._backend.encode("a", add_special_tokens=True)
        count = encoding.special_tokens_mask.index(0) if 0 in encoding.special_tokens_mask else 0
        begin: list[int] = encoding.ids[:count]
        return [self.bos_id] if self.special.add_bos and not begin and self.bos_id is not None else begin


class _Decoder:
    """How tokens become text, out of the `decoder` of a tokenizer.json."""

    def __init__(self, state: dict[str, Any]) -> None:
        kind = state.get("type")
        steps = state.get("decoders", []) if kind == "Sequence" else [state]
        kinds = [step.get("type") for step in steps]
        unknown = sorted(set(map(str, kinds)) - {"ByteLevel", "Replace", "ByteFallback", "Fuse", "Strip", "Metaspace"})
        if unknown:
            raise TokenizerError(f"decoder {', '.join(unknown)} is not supported")
        self.byte_level = "ByteLevel" in kinds
        self.strips_first = False
        self._byte_fallback = "ByteFallback" in kinds
        self._replaced: list[tuple[str, str]] = []
        for step in steps:
            self._read(step)

    def piece(self, token: str) -> str | bytes:
        """What a token of the vocabulary stands for."""
        if self.byte_level:
            values = [_BYTE_OF.get(character) for character in token]
            return token.encode() if None in values else bytes(value for value in values if value is not None)
        if self._byte_fallback and len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            try:
                return bytes([int(token[3:5], 16)])
            except ValueError:
                pass  # a token that only looks like "<0xE2>"
        for old, new in self._replaced:
            token = token.replace(old, new)
        return token.replace(" ", SPACE)  # as pieces write it

    def _read(self, step: dict[str, Any]) -> None:
        if step["type"] == "Replace":
            pattern = step["pattern"].get("String")
            if pattern is None:
                raise TokenizerError("a decoder that replaces a regular expression is not supported")
            self._replaced.append((pattern, step["content"]))
        elif step["type"] == "Strip":
            if (step["content"], step["start"], step["stop"]) not in ((" ", 1, 0), (" ", 0, 0)):
                raise TokenizerError("a decoder that strips more than one leading space is not supported")
            self.strips_first |= step["start"] == 1
        elif step["type"] == "Metaspace":
            self._replaced.append((step["replacement"], " "))
            self.strips_first |= step.get("prepend_scheme", "always") != "never"


def _byte_characters() -> dict[str, int]:
    """The printable character that byte-level vocabularies write for each byte, back to the byte (GPT-2)."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + index): byte for index, byte in enumerate(others)}


_BYTE_OF = _byte_characters()


def _state(part: Any) -> dict[str, Any]:
    """The settings of one part of a tokenizer, as in its file."""
    content = json.loads(part.__getstate__()) if part is not None else {}
    return content if isinstance(content, dict) else {}


def _named(special: SpecialTokens, backend: "Backend") -> SpecialTokens:
    """Special tokens with names for the ids of generation_config.json, where the folder does not speak of them."""
    ids = {"bos_token": special.bos_id, "eos_token": special.eos_id}
    names = {role: backend.id_to_token(token_id) for role, token_id in ids.items() if token_id is not None}
    return replace(special, names={role: name for role, name in names.items() if name} | dict(special.names))


def read_json_tokenizer(path: Path, special: SpecialTokens) -> JsonTokenizer:
    """Read a tokenizer.json, or raise TokenizerError."""
    try:
        from tokenizers import Tokenizer as Backend
    except ImportError as error:
        raise TokenizerError(f"{path}: needs the tokenizers package; pip install tokenizers") from error
    try:
        size = path.stat().st_size
        if size > _MAX_BYTES:
            raise TokenizerError(f"{size} bytes, more than the {_MAX_BYTES} a tokenizer may have")
        backend = Backend.from_str(path.read_bytes().decode())
        backend.no_truncation()  # limits that were set for training
        backend.no_padding()
        return JsonTokenizer(backend, special)
    except Exception as error:  # the library raises plain Exception for whatever is wrong with a file
        raise _unreadable(path, error) from None
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # Rust's panics; pyo3 does not export their class
            raise
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: BaseException) -> TokenizerError:
    return TokenizerError(f"{path}: cannot be read as a tokenizer: {_one_line(error)}")


def _one_line(error: BaseException) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:200]
