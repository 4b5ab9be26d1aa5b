"""Files of settings, read as a whole: regular ones only, up to a bound, as text or JSON.

A name can also be that of a pipe that nobody writes to, of a device that never ends, or of a link in a circle.
"""

import json
import os
import stat
from pathlib import Path
from typing import Any


class UnreadableFileError(Exception):
    """A file that cannot be read as what it should be; says why, in a clause without the path."""


def read_small(path: Path, most_bytes: int) -> bytes:
    """The content of a regular file of at most `most_bytes`; never waits. Raises UnreadableFileError."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise UnreadableFileError("cannot be read (not a regular file)")
            content = file.read(most_bytes + 1)
    except (OSError, ValueError) as error:  # ValueError: a null character in the name
        raise UnreadableFileError(f"cannot be read ({getattr(error, 'strerror', None) or error})") from None
    if len(content) > most_bytes:
        raise UnreadableFileError(f"more than the {most_bytes} bytes that it may have")
    return content


def read_small_text(path: Path, most_bytes: int) -> str:
    """Like `read_small`, as UTF-8."""
    try:
        return read_small(path, most_bytes).decode()
    except UnicodeDecodeError as error:
        raise UnreadableFileError(f"not UTF-8 at byte {error.start}") from None


def read_small_json(path: Path, most_bytes: int) -> Any:
    """Like `read_small`, as the value of a JSON text in UTF-8."""
    content = read_small(path, most_bytes)
    try:
        return json.loads(content.decode())
    except RecursionError:
        raise UnreadableFileError("not JSON: nested too deeply") from None
    except ValueError as error:  # what is not UTF-8, and numbers of thousands of digits, too
        raise UnreadableFileError(f"not JSON: {error}") from None
