"""Stop words, whatever pieces the text comes in."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybrid.errors import UsageError
from hybrid.text.stop_words import StopWords


def shown(words: list[str], pieces: list[str]) -> tuple[list[str], str | None]:
    stop = StopWords(words)
    out = [stop.feed(piece) for piece in pieces]
    return [*out, stop.flush()], stop.found


def test_a_word_is_never_shown_in_part() -> None:
    assert shown(["END"], ["a E", "N", "D b"]) == (["a ", "", "", ""], "END")
    assert shown(["END"], ["a E", "N", "T b"]) == (["a ", "", "ENT b", ""], None)
    assert shown(["END"], ["a EN"]) == (["a ", "EN"], None)
    assert shown(["END"], ["END", "more"]) == (["", "", ""], "END")


def test_a_beginning_inside_a_beginning() -> None:
    assert shown(["aab"], ["a", "a", "a", "b"]) == (["", "", "a", "", ""], "aab")


def test_the_word_that_is_complete_first_counts() -> None:
    assert shown(["abcd", "bc"], ["abcd"]) == (["a", ""], "bc")
    assert shown(["abcd", "bc"], ["a", "b", "c", "d"]) == (["", "", "a", "", ""], "bc")
    assert shown(["c", "abc"], ["xabc"]) == (["x", ""], "abc")  # both at once: the longer


def test_without_words_all_passes() -> None:
    assert shown([], ["a", "b"]) == (["a", "b", ""], None)


def test_an_empty_word_is_refused() -> None:
    with pytest.raises(UsageError, match="at least one character"):
        StopWords(["a", ""])


@given(words=st.lists(st.text("ab", min_size=1, max_size=4), max_size=3), pieces=st.lists(st.text("abc", max_size=4)))
def test_pieces_do_not_matter(words: list[str], pieces: list[str]) -> None:
    out, found = shown(words, pieces)
    text = "".join(pieces)
    ends = sorted((text.find(word) + len(word), text.find(word), word) for word in words if word in text)
    assert found == (ends[0][2] if ends else None)
    assert "".join(out) == (text[: ends[0][1]] if ends else text)
