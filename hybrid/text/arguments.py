"""Arguments of the Python API: names and types that cannot be are told as flags are, with what was meant."""

import difflib
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields
from functools import wraps
from numbers import Integral, Real
from pathlib import Path
from typing import Any, ParamSpec, TypeVar, Union, get_args, get_origin, get_type_hints

from hybrid.errors import UsageError
from hybrid.shown import show
from hybrid.text.sampling import SamplingSettings

P = ParamSpec("P")
R = TypeVar("R")

_NAMES = {
    bool: "True or False",
    int: "a whole number",
    float: "a number",
    str: "text",
    Path: "a path",
    Mapping: "a dictionary",
    Sequence: "a list",
    types.NoneType: "None",
}


def check_arguments(function: str, given: Mapping[str, Any], hints: Mapping[str, Any]) -> None:
    """Raise UsageError for an argument that `function` has not, with the nearest it has, or of a wrong type."""
    for name, value in given.items():
        if name not in hints:
            raise UsageError(f"{function}() has no argument {show(name)}; {_meant(name, hints)}")
        kinds = _kinds(hints[name])
        if not any(_is(value, kind) for kind in kinds):
            raise UsageError(f"{function}(): {name} is {show(value)}, must be {_in_words(kinds)}")


def checked(function: Callable[P, R]) -> Callable[P, R]:
    """Have a call of `function` checked as `check_arguments` does."""
    hints = {name: hint for name, hint in get_type_hints(function).items() if name != "return"}

    @wraps(function)
    def call(*positional: P.args, **named: P.kwargs) -> R:
        check_arguments(function.__name__, dict(zip(hints, positional, strict=False)) | named, hints)
        return function(*positional, **named)

    return call


def sampling_hints() -> dict[str, Any]:
    """The types of the fields of SamplingSettings; None is for what is not given."""
    hints = get_type_hints(SamplingSettings)
    return {each.name: hints[each.name] | None for each in fields(SamplingSettings)}


def stop_texts(function: str, stop: str | Iterable[str]) -> tuple[str, ...]:
    """The stop texts; one may stand alone. Raises UsageError."""
    texts = (stop,) if isinstance(stop, str) else tuple(stop) if isinstance(stop, Iterable) else (stop,)
    for text in texts:
        if not isinstance(text, str):
            raise UsageError(f"{function}(): stop has {show(text)}, must be text or a list of texts")
    return texts


def _meant(name: str, hints: Mapping[str, Any]) -> str:
    near = difflib.get_close_matches(name, hints, 1)
    return f"did you mean {near[0]}?" if near else f"it has {', '.join(hints)}"


def _kinds(hint: Any) -> list[Any]:
    parts = get_args(hint) if get_origin(hint) in (types.UnionType, Union) else (hint,)
    return [get_origin(part) or part for part in parts]


def _is(value: Any, kind: Any) -> bool:
    """Tell whether a value can stand for a type; numbers of NumPy can, and truth values for no numbers."""
    if kind in (int, float):
        return isinstance(value, Integral if kind is int else Real) and not isinstance(value, bool)
    return isinstance(value, kind)


def _in_words(kinds: Sequence[Any]) -> str:
    *before, last = [_NAMES[kind] for kind in kinds]
    return f"{', '.join(before)} or {last}" if before else last
