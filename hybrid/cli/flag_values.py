"""The values of a command's flags, by parameter name, as settings."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from hybrid.errors import ArgumentsError, UsageError
from hybrid.loading.settings import RunSettings
from hybrid.show.console import check_writable, emit

JSON = "json"  # what --stats writes to standard error


def run_settings(values: Mapping[str, Any]) -> RunSettings:
    """The settings of a run among a command's flags; those it does not have keep their defaults."""
    flags = {"context_tokens": "context"}
    names = [(field.name, flags.get(field.name, field.name)) for field in fields(RunSettings)]
    return RunSettings(**{name: values[flag] for name, flag in names if flag in values})


def shared_with(command: Callable[..., int], values: Mapping[str, Any]) -> dict[str, Any]:
    """Those of `values` that another command takes too."""
    return {name: values[name] for name in inspect.signature(command).parameters if name in values}


def print_settings(command: Callable[..., int], values: Mapping[str, Any]) -> int:
    """Print what is in force for the flags of a command; gives the exit code."""
    from hybrid.cli.settings_file import print_config, settings_of

    names = {flag: "as_json" if flag == "json" else flag.replace("-", "_") for flag in settings_of(command)}
    emit(print_config({flag: values[name] for flag, name in names.items() if name in values}))
    return 0


def sampling_flags(values: Mapping[str, Any]) -> dict[str, Any]:
    """The sampling flags among the parameters of a command, by the names of `SamplingSettings`."""
    names = (
        "temperature", "top_k", "top_p", "min_p", "typical_p", "repetition_penalty", "presence_penalty",
        "frequency_penalty", "seed",
    )  # fmt: skip
    return {name: values[name] for name in names} | {"logit_bias": _logit_bias(values["logit_bias"])}


def check_together(values: Mapping[str, Any]) -> None:
    """Refuse flags of a run that do not go together. Raises UsageError."""
    if values["raw"] and values["chat_template"] is not None:
        raise UsageError("--raw and --chat-template contradict each other; drop one of them")
    if values["beams"] > 1 and values["stats"] is not None:
        raise UsageError("--stats tells what sampling took; it does not go with --beams")
    if values["beams"] > 1 and (values["n"] > 1 or values["temperature"] or values["stop"]):
        raise UsageError("--beams searches for one likeliest text; it does not go with --n, --temperature or --stop")
    if values["n"] > 1 and values["temperature"] == 0:
        raise UsageError(f"--n {values['n']}: without a --temperature above 0 all completions would be the same")


def stats_file(stats: str | None) -> Path | None:
    """The file that `--stats` names, if it names one. Raises UsageError where it could not be written in the end."""
    if stats is None or stats == JSON:
        return None
    path = Path(stats).expanduser()
    if path.suffix.lower() != ".json":
        raise ArgumentsError(f"--stats {stats}: must be json, or a file whose name ends in .json")
    check_writable("--stats", path)
    return path


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
