"""Check the form of every error that a user can cause."""

from collections.abc import Callable

import pytest

from hybrid.errors import ModelError


def one_line(kind: type[ModelError], call: Callable[[], object], *mentions: str) -> str:
    """The message of the error that `call` must raise: of this very class, short, printable, naming what it is of."""
    with pytest.raises(ModelError) as caught:
        call()
    message = str(caught.value)
    assert caught.type is kind, message
    assert message.isprintable(), message
    assert len(message) < 500
    for mention in mentions:
        assert mention in message
    return message
