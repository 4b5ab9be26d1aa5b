"""Tokens that were added to a vocabulary after training, and finding their names in text."""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from hybrid.errors import TokenizerError
from hybrid.shown import show

_FLAGS = ("special", "lstrip", "rstrip", "single_word", "normalized")
_NO_FLAGS = ("content", "id", "__type")
_LAST_WORD = re.compile(r"\w\Z")
_FIRST_WORD = re.compile(r"\w")


@dataclass(frozen=True)
class AddedToken:
    """A token by its name, and where it is found in text. Special ones are never shown.

    `lstrip` and `rstrip` take the white space beside it, `single_word` wants no letter there, `normalized` looks for
    it in normalised text. `token_id` is None where a file names the token only.
    """

    text: str
    special: bool = True
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False
    normalized: bool = False
    token_id: int | None = None

    def as_special(self) -> "AddedToken":
        """The same token, never shown."""
        return replace(self, special=True)


def read_added_token(value: Any, where: str, special: bool = True) -> AddedToken:
    """A token out of JSON: a name, or an object with `content` and flags. Raises TokenizerError, which says `where`.

    `special` is for objects that do not say it themselves; a name alone is always special.
    """
    if isinstance(value, str) and value:
        return AddedToken(value)
    if not (isinstance(value, dict) and isinstance(value.get("content"), str) and value["content"]):
        raise TokenizerError(f"{where} is {show(value)}, not a token")
    flags = {"special": special} | {name: flag for name, flag in value.items() if name not in _NO_FLAGS}
    for name, flag in flags.items():
        if name not in _FLAGS or not isinstance(flag, bool):
            raise TokenizerError(f"{where}: {show(name)} is {show(flag)}; flags of tokens are {', '.join(_FLAGS)}")
    return AddedToken(value["content"], **{"normalized": not flags["special"], **flags})


class TokenFinder:
    """Splits text at the names of added tokens: the first name wins, and the longest of those that begin there."""

    def __init__(self, tokens: Iterable[AddedToken]) -> None:
        self._tokens: Mapping[str, AddedToken] = {token.text: token for token in tokens}
        longest_first = sorted(self._tokens, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first))) if longest_first else None

    def split(self, text: str) -> Iterator[str | AddedToken]:
        """The tokens in a text and what stands between them, in order."""
        done = 0
        for match in self._pattern.finditer(text) if self._pattern else ():
            token, start, end = self._tokens[match[0]], match.start(), match.end()
            if start < done or (token.single_word and _touches_a_word(text, start, end)):
                continue
            if token.lstrip:
                start = done + len(text[done:start].rstrip())
            if token.rstrip:
                end = len(text) - len(text[end:].lstrip())
            if start > done:
                yield text[done:start]
            yield token
            done = end
        if done < len(text):
            yield text[done:]


def _touches_a_word(text: str, start: int, end: int) -> bool:
    return bool(_LAST_WORD.search(text, 0, start) or _FIRST_WORD.match(text, end))
