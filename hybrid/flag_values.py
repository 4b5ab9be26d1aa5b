"""The values of a command's flags, by parameter name, as settings."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

from hybrid.config import RunSettings
from hybrid.errors import UsageError


def run_settings(values: Mapping[str, Any]) -> RunSettings:
    """The settings of a run among a command's flags; those it does not have keep their defaults."""
    flags = {"context_tokens": "context"}
    names = [(field.name, flags.get(field.name, field.name)) for field in fields(RunSettings)]
    return RunSettings(**{name: values[flag] for name, flag in names if flag in values})


def shared_with(command: Callable[..., int], values: Mapping[str, Any]) -> dict[str, Any]:
    """Those of `values` that another command takes too."""
    return {name: values[name] for name in inspect.signature(command).parameters if name in values}


def sampling_flags(values: Mapping[str, Any]) -> dict[str, Any]:
    """The sampling flags among the parameters of a command, by the names of `SamplingSettings`."""
    names = (
        "temperature", "top_k", "top_p", "min_p", "typical_p", "repetition_penalty", "presence_penalty",
        "frequency_penalty", "seed",
    )  # fmt: skip
    return {name: values[name] for name in names} | {"logit_bias": _logit_bias(values["logit_bias"])}


def without_effect(values: Mapping[str, Any], temperature: float) -> list[str]:
    """A line for flags of a command that were given and change nothing, at the `temperature` that is in force."""
    lines = []
    shaping = [name for name in ("top_k", "top_p", "min_p", "typical_p", "seed") if values[name] is not None]
    if shaping and temperature == 0:
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in shaping)
        lines.append(f"{flags}: no effect without a --temperature above 0, the likeliest token is always taken")
    if values.get("length_penalty", 1.0) != 1.0 and values["beams"] == 1:
        lines.append("--length-penalty: no effect without --beams")
    return lines


def _logit_bias(pairs: list[str] | None) -> dict[int, float] | None:
    """The token ids and numbers of "ID=BIAS" texts."""
    biases = {}
    for pair in pairs or ():
        token_id, _, bias = pair.partition("=")
        try:
            biases[int(token_id)] = float(bias)
        except ValueError:
            raise UsageError(f"--logit-bias {pair}: must be a token id, =, and a number, as in 42=-1.5") from None
    return biases or None
