"""Text that came from a stranger's file, made fit for a terminal: the one place that says what may not get there."""

import re

# Control characters but newline and tab (C0, DEL, C1), which move the cursor or change the terminal; what overrides
# the direction of text (U+202A to E, U+2066 to 9), which shows one name as another.
_NOT_SHOWN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
_SURROGATE = re.compile("[\ud800-\udfff]")  # half a character, or a byte of a file name that is not UTF-8


def printable(text: str) -> str:
    """Drop what a terminal would obey instead of showing. Each character counts alone: pieces of text will do."""
    return _SURROGATE.sub("\ufffd", _NOT_SHOWN.sub("", text))
