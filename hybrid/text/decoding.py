"""Token ids to text as they come: a chain of steps, each of which gives out what is certain."""

import codecs
import copy
import re
from collections.abc import Callable, Sequence
from typing import Any, Protocol

_ESCAPED_BYTE = re.compile("[\udc80-\udcff]")  # what "surrogateescape" makes of a byte that is not UTF-8
_CLEANED = (" .", " ?", " !", " ,", " ' ", " n't", " 'm", " 's", " 've", " 're")
_CUT = re.compile(r"(?<=[^ ']) ")


class DecodingStep(Protocol):
    """One step of decoding. Its state is immutable values, so that a shallow copy is independent."""

    def feed(self, token: Any, /) -> Sequence[str]:
        """The tokens, or pieces of text, that are certain after one more."""

    def flush(self) -> Sequence[str]:
        """Give the text that was held back, at its end."""


class StreamingDecoder:
    """Ids in, text out as soon as it is certain; all of it together is the text of all ids.

    `token_of` gives what the first step reads; None for ids that have no text.
    """

    def __init__(self, token_of: Callable[[int], Any], steps: Sequence[DecodingStep]) -> None:
        self._token_of = token_of
        self._steps = steps

    def feed(self, token_id: int) -> str:
        """The text that is certain after one more id."""
        token = self._token_of(token_id)
        return "" if token is None else self._pass_on([token], 0)

    def flush(self) -> str:
        """The rest of the text, at its end."""
        return "".join([self._pass_on(step.flush(), index) for index, step in enumerate(self._steps, 1)])

    def pending(self) -> str:
        """Give the text that `flush` would give now; nothing changes."""
        return StreamingDecoder(self._token_of, [copy.copy(step) for step in self._steps]).flush()

    def _pass_on(self, tokens: Sequence[Any], first_step: int) -> str:
        for step in self._steps[first_step:]:
            tokens = step.feed(tokens[0]) if len(tokens) == 1 else [out for token in tokens for out in step.feed(token)]
        return "".join(tokens)


class Utf8:
    """Bytes in, characters out when they are whole.

    `each` says what is shown for bytes that are no UTF-8: U+FFFD for each of them, else one for a run.
    """

    def __init__(self, each: bool) -> None:
        self._errors = "surrogateescape" if each else "replace"
        self._data = b""

    def add(self, data: bytes) -> Sequence[str]:
        """The characters that are whole after more bytes."""
        return self._decode(self._data + data, final=False)

    def flush(self) -> Sequence[str]:
        """Show bytes of a character that never became whole."""
        return self._decode(self._data, final=True)

    def _decode(self, data: bytes, final: bool) -> Sequence[str]:
        if not data:
            return ()
        text, used = codecs.utf_8_decode(data, self._errors, final)
        self._data = data[used:]
        return [_ESCAPED_BYTE.sub("\ufffd", text)] if text else []


class CleanUp:
    """Takes out spaces before punctuation, as `clean_up_tokenization_spaces` asks; a word is held till the next begins.

    The text is cut before spaces that end no pattern, so that cleaning the parts cleans the whole.
    """

    def __init__(self) -> None:
        self._text = ""

    def feed(self, text: str) -> Sequence[str]:
        self._text += text
        cut = max([match.start() for match in _CUT.finditer(self._text)], default=0)
        done, self._text = self._text[:cut], self._text[cut:]
        return [_cleaned(done)]

    def flush(self) -> Sequence[str]:
        done, self._text = self._text, ""
        return [_cleaned(done)]


def _cleaned(text: str) -> str:
    for pattern in _CLEANED:
        text = text.replace(pattern, pattern.strip(" "))
    return text
