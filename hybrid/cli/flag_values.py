"""The values of flags, as what loading and sampling take."""

from dataclasses import fields
from typing import Any

from hybrid.cli.flags import LoadFlags, SamplingFlags
from hybrid.errors import UsageError
from hybrid.loading.settings import RunSettings

_FLAG_OF = {"context_tokens": "context"}  # where a setting is not called as its flag is


def run_settings(flags: LoadFlags) -> RunSettings:
    """The settings of a run; those that a command has no flag for keep their defaults."""
    names = {field.name: _FLAG_OF.get(field.name, field.name) for field in fields(RunSettings)}
    return RunSettings(**{name: getattr(flags, flag) for name, flag in names.items() if hasattr(flags, flag)})


def sampling_values(flags: SamplingFlags) -> dict[str, Any]:
    """What `merge_sampling` takes. Raises UsageError for a --logit-bias that is none."""
    names = [field.name for field in fields(SamplingFlags) if field.name not in ("max_tokens", "stop")]
    return {name: getattr(flags, name) for name in names} | {"logit_bias": _logit_bias(flags.logit_bias)}


def shaping_without_effect(flags: SamplingFlags, temperature: float) -> list[str]:
    """A line for flags that were given and shape nothing at the `temperature` that is in force."""
    shaping = [name for name in ("top_k", "top_p", "min_p", "typical_p", "seed") if getattr(flags, name) is not None]
    if not shaping or temperature != 0:
        return []
    given = ", ".join(f"--{name.replace('_', '-')}" for name in shaping)
    return [f"{given}: no effect without a --temperature above 0, the likeliest token is always taken"]


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
