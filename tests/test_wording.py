"""The words of messages that users read are those of tests/wording.txt."""

from tests.wording import GOLDEN, wording


def test_messages_have_the_words_that_were_agreed_on() -> None:
    assert wording() == GOLDEN.read_text(), "python -m tests.wording > tests/wording.txt, and read the difference"
