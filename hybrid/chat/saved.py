"""Conversations as JSON files."""

import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hybrid.errors import UsageError
from hybrid.shown import show
from hybrid.text.chat_template import Message
from offload.small_files import UnreadableFileError, read_small_json

FORMAT = "hybrid-run conversation"
_MAX_BYTES = 1 << 26


def save(path: Path, system: str | None, messages: Sequence[Message], model: str = "") -> None:
    """Write a conversation under a temporary name, then rename: a file is whole or not there.

    Raises UsageError when it cannot be written, or would replace a file that is no conversation.
    """
    said = [Message("system", system)] if system else []
    plain = [{"role": message.role, "content": message.content} for message in (*said, *messages)]
    content = json.dumps({"format": FORMAT, "model": model, "messages": plain}, indent=2, ensure_ascii=False)
    target = Path(os.path.realpath(path))  # a link stays a link
    if os.path.lexists(target):
        try:
            load(target)
        except UsageError:
            raise UsageError(f"{path} is there and holds no conversation; choose another name") from None
    try:
        with tempfile.NamedTemporaryFile(dir=target.parent, prefix=f".{target.name}.", delete=False) as file:
            try:
                file.write(content.encode() + b"\n")
                file.close()
                os.replace(file.name, target)
            except BaseException:
                os.unlink(file.name)
                raise
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}") from None
    except UnicodeEncodeError:
        raise UsageError("the conversation has half a character in it, which no file can hold") from None


def load(path: Path) -> tuple[str | None, tuple[Message, ...]]:
    """The system message, if any, and the messages of a file; raises UsageError for a file that has none."""
    try:
        content = read_small_json(path, _MAX_BYTES)
    except UnreadableFileError as error:
        raise UsageError(f"{path} is no saved conversation: {error}") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise UsageError(f"{path} is no saved conversation")
    listed = content.get("messages")
    messages = [_message(path, item) for item in (listed if isinstance(listed, list) else [])]
    system = messages.pop(0).content if messages and messages[0].role == "system" else None
    for number, message in enumerate(messages):
        if message.role != ("user", "assistant")[number % 2]:
            raise UsageError(
                f"{path}: message {number + 1} is by {show(message.role)}; user and assistant must take turns"
            )
    if len(messages) % 2:
        raise UsageError(f"{path}: the last message has no reply")
    return system, tuple(messages)


def _message(path: Path, item: Any) -> Message:
    if isinstance(item, dict):
        role, content = item.get("role"), item.get("content")
        if isinstance(role, str) and isinstance(content, str):
            return Message(role, content)
    raise UsageError(f"{path}: messages must have a role and a content, both text")
