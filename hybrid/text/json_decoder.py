"""The `decoder` of a tokenizer.json: how tokens become text, step by step.

Steps that change each token by itself are done by the `tokenizers` library. Those that look at their neighbours
(bytes, the last token, the start of the text) are written here, so that text comes as soon as it is certain.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache, lru_cache, partial
from typing import Any, Protocol

from hybrid.errors import TokenizerError
from hybrid.text.decoding import DecodingStep, Utf8

_EACH_TOKEN = ("Replace", "Strip", "Metaspace", "WordPiece")
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class LibraryDecoder(Protocol):
    """A decoder of the library."""

    def decode(self, tokens: list[str], /) -> str:
        """The text of tokens."""


def step_makers(
    state: Mapping[str, Any], library_decoder: Callable[[Mapping[str, Any]], LibraryDecoder]
) -> list[Callable[[], DecodingStep]]:
    """Give the makers of a decoder's steps; `state` is the decoder as a file writes it, {} for none.

    Raises TokenizerError for a decoder whose text cannot be told before the last token.
    """
    if not state:
        return [Spaced]  # as the library joins tokens without a decoder
    steps = _flat(state)
    makers: list[Callable[[], DecodingStep]] = []
    fused = False
    for index, step in enumerate(steps):
        kind, later = step.get("type"), steps[index + 1 :]
        if kind == "ByteLevel" and not fused:
            makers.append(ByteCharacters)
            fused = True
        elif kind == "ByteFallback" and not fused:
            fused = _is_any_split(later)
            makers.append(FallbackBytes if fused else FallbackRuns)
        elif kind == "Fuse":
            fused = True
        elif fused:
            makers.append(_text_step(step))
        elif kind == "BPEDecoder":
            makers.append(partial(WordEnds, step["suffix"]))
        elif kind in _EACH_TOKEN and not (kind == "Strip" and step["stop"]):
            part = library_decoder(step)
            makers.append(partial(EachToken, part, cache(partial(_later, part))))
        else:
            raise TokenizerError(f"decoder {_named(step)} is not supported")
    return makers


def _flat(state: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The steps of a decoder, sequences within sequences unrolled."""
    if state.get("type") != "Sequence":
        return [state]
    return [step for part in state["decoders"] for step in _flat(part)]


def _is_any_split(steps: Sequence[Mapping[str, Any]]) -> bool:
    """Tell whether steps give the same text wherever text is cut into tokens before them."""
    for step in steps:
        if step.get("type") == "Fuse":
            return True
        if not _replaces_a_character(step):
            return False
    return True


def _replaces_a_character(step: Mapping[str, Any]) -> bool:
    return step.get("type") == "Replace" and len(step["pattern"].get("String", "")) == 1


def _text_step(step: Mapping[str, Any]) -> Callable[[], DecodingStep]:
    """A step that comes where tokens are one text already."""
    if _replaces_a_character(step):
        return partial(Replaced, step["pattern"]["String"], step["content"])
    if step.get("type") == "Strip":
        return partial(Stripped, step["content"], step["start"], step["stop"])
    raise TokenizerError(f"decoder {_named(step)} is not supported after one that joins the tokens")


def _named(step: Mapping[str, Any]) -> str:
    if step.get("type") == "Strip":
        return "Strip with a stop"
    return f"{step.get('type')} of {step['pattern']}" if step.get("type") == "Replace" else str(step.get("type"))


class Spaced:
    """No decoder: tokens as they are, with a space between them."""

    def __init__(self) -> None:
        self._separator = ""

    def feed(self, token: str) -> Sequence[str]:
        separator, self._separator = self._separator, " "
        return [separator + token]

    def flush(self) -> Sequence[str]:
        return []


class EachToken:
    """Decodes each token by itself with the library; the first can differ from the others."""

    def __init__(self, part: LibraryDecoder, later: Callable[[str], str]) -> None:
        self._part = part
        self._later = later
        self._is_first = True

    def feed(self, token: str) -> Sequence[str]:
        if self._is_first:
            self._is_first = False
            return [self._part.decode([token])]
        return [self._later(token)]

    def flush(self) -> Sequence[str]:
        return []


def _later(part: LibraryDecoder, token: str) -> str:
    """Decode a token that is not the first."""
    return part.decode(["", token]).removeprefix(part.decode([""]))


class WordEnds:
    """Tokens that end words have a suffix; it becomes a space, but at the end of the text."""

    def __init__(self, suffix: str) -> None:
        self._suffix = suffix
        self._last = ""

    def feed(self, token: str) -> Sequence[str]:
        before, self._last = self._last, token
        return [before.replace(self._suffix, " ")]

    def flush(self) -> Sequence[str]:
        last, self._last = self._last, ""
        return [last.replace(self._suffix, "")]


class ByteCharacters(Utf8):
    """Tokens are bytes, written as printable characters (GPT-2); those that are not are text."""

    def __init__(self) -> None:
        super().__init__(each=False)

    def feed(self, token: str) -> Sequence[str]:
        return self.add(_bytes_of(token))


class FallbackBytes(Utf8):
    """Tokens like <0xE2> are bytes. Their characters are given as they become whole, tokens may be cut anywhere.

    Where a run of bytes is no UTF-8, U+FFFD stands for each bad one, as sentencepiece does; the library gives up the
    good ones of the run too, which cannot be known before its end.
    """

    def __init__(self) -> None:
        super().__init__(each=True)

    def feed(self, token: str) -> Sequence[str]:
        byte = _BYTE_TOKEN.fullmatch(token) if token.startswith("<0x") else None
        return self.add(bytes([int(byte[1], 16)])) if byte else [*self.flush(), token]


class FallbackRuns:
    """Tokens like <0xE2> are bytes; a run of them is one token for the steps that follow, when it is over."""

    def __init__(self) -> None:
        self._data = b""

    def feed(self, token: str) -> Sequence[str]:
        byte = _BYTE_TOKEN.fullmatch(token)
        if byte is None:
            return [*self.flush(), token]
        self._data += bytes([int(byte[1], 16)])
        return []

    def flush(self) -> Sequence[str]:
        data, self._data = self._data, b""
        try:
            return [data.decode()] if data else []
        except UnicodeDecodeError:
            return ["\ufffd"] * len(data)


class Replaced:
    """A character of the text replaced."""

    def __init__(self, old: str, new: str) -> None:
        self._old, self._new = old, new

    def feed(self, text: str) -> Sequence[str]:
        return [text.replace(self._old, self._new)]

    def flush(self) -> Sequence[str]:
        return []


class Stripped:
    """The text without up to `start` of a character at its start, and `stop` at its end."""

    def __init__(self, character: str, start: int, stop: int) -> None:
        self._character, self._start, self._stop = character, start, stop
        self._held = ""

    def feed(self, text: str) -> Sequence[str]:
        if not (self._start or self._stop):
            return [text]
        while text and self._start:
            self._start = self._start - 1 if text.startswith(self._character) else 0
            text = text.removeprefix(self._character)
        text = self._held + text
        end = text[len(text) - min(self._stop, len(text)) :]
        kept = len(end) - len(end.rstrip(self._character))
        self._held = text[len(text) - kept :]
        return [text[: len(text) - kept]]

    def flush(self) -> Sequence[str]:
        self._held = ""
        return []


def _byte_characters() -> dict[str, int]:
    """The printable character that byte-level vocabularies write for each byte, back to the byte (GPT-2)."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + index): byte for index, byte in enumerate(others)}


_BYTE_OF = _byte_characters()


@lru_cache(maxsize=1 << 18)
def _bytes_of(token: str) -> bytes:
    values = [_BYTE_OF.get(character) for character in token]
    return token.encode() if None in values else bytes(value for value in values if value is not None)
