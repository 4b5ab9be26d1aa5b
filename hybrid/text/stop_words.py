"""Stop words: text that ends a generation and is never shown."""

from collections.abc import Iterable

from hybrid.errors import UsageError


class StopWords:
    """Lets text through up to the first stop word, whatever pieces it comes in.

    What could be the beginning of a stop word is held back until it is known not to be one. First is the word that
    is complete first; of words that end at the same place, the longest. `found` is that word, None before.
    """

    def __init__(self, words: Iterable[str]) -> None:
        self._words = tuple(dict.fromkeys(words))
        if "" in self._words:
            raise UsageError("a stop word must have at least one character")
        self._longest = max(map(len, self._words), default=0)
        self._held = ""
        self.found: str | None = None

    def feed(self, text: str) -> str:
        """The text that is certain to come before any stop word; nothing once one was found."""
        if self.found is not None:
            return ""
        text = self._held + text
        ends = [(start + len(word), start, word) for word in self._words if (start := text.find(word)) >= 0]
        if ends:
            _, start, self.found = min(ends)
            self._held = ""
            return text[:start]
        keep = self._beginning_at_end_of(text)
        shown, self._held = text[: len(text) - keep], text[len(text) - keep :]
        return shown

    def flush(self) -> str:
        """The end of the text: what was held back and turned out to be no stop word."""
        held, self._held = self._held, ""
        return held

    def _beginning_at_end_of(self, text: str) -> int:
        """Count the characters at the end that could begin a stop word."""
        for count in range(min(self._longest - 1, len(text)), 0, -1):
            if any(word.startswith(text[-count:]) for word in self._words):
                return count
        return 0
