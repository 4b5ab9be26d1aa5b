"""The rules that `/set` changes: how the replies of a conversation are made from now on."""

import difflib
from dataclasses import replace
from typing import Any

from hybrid.chat.reply import ReplyRules
from hybrid.errors import UsageError

MAX_TOKENS = "max-tokens"
_TYPES: dict[str, type[int] | type[float]] = {
    "temperature": float,
    "top-k": int,
    "top-p": float,
    "min-p": float,
    "typical-p": float,
    "repetition-penalty": float,
    "presence-penalty": float,
    "frequency-penalty": float,
    "seed": int,
    MAX_TOKENS: int,
}
NAMES = (*_TYPES, "system")


def changed(rules: ReplyRules, name: str, text: str) -> ReplyRules:
    """The rules with one of `NAMES` but the system message set anew. Raises UsageError."""
    name = _known(name)
    wanted = _TYPES[name]
    try:
        value = wanted(text)
    except ValueError:
        number = "a whole number" if wanted is int else "a number"
        raise UsageError(f"{name} must be {number}, not {text or 'nothing'}") from None
    if name == MAX_TOKENS:
        if value < 1:
            raise UsageError(f"{name} must be a whole number from 1 up, not {value}")
        return replace(rules, max_tokens=int(value))
    given: dict[str, Any] = {name.replace("-", "_"): value}
    return replace(rules, sampling=replace(rules.sampling, **given))


def shown(rules: ReplyRules) -> str:
    """Give the rules in force, as they would be set."""
    values = {name: getattr(rules.sampling, name.replace("-", "_"), None) for name in _TYPES}
    values[MAX_TOKENS] = rules.max_tokens
    return "\n".join(f"{name} {'a new one each time' if value is None else value}" for name, value in values.items())


def _known(name: str) -> str:
    name = name.removeprefix("--").replace("_", "-")
    if name in _TYPES:
        return name
    near = difflib.get_close_matches(name, NAMES, 1)
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(NAMES)}"
    raise UsageError(f"/set knows no {name}; {hint}")
