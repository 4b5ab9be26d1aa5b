"""The rotary settings of config.json, checked, as what they come to: how far a position turns each pair of a head.

transformers 5 gathers them in `rope_parameters`; older files have `rope_theta` and `rope_scaling` beside it. All forms
are read, with the precedence that transformers gives them. The scalings are those published with the models, as in its
modeling_rope_utils.
"""

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from hybrid.errors import ModelConfigError
from hybrid.families.config.values import ConfigValues
from hybrid.shown import listed, show
from offload.spec.units import counted

_MAX_POSITIONS = 2**28
_COMMON = {"rope_type", "type", "rope_theta", "partial_rotary_factor"}
_KEYS: dict[str, set[str]] = {
    "default": set(),
    "linear": {"factor"},
    "dynamic": {"factor"},
    "llama3": {"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"},
    "yarn": {
        *("factor", "original_max_position_embeddings", "attention_factor"),
        *("beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"),
    },
    "longrope": {"factor", "original_max_position_embeddings", "attention_factor", "short_factor", "long_factor"},
    "proportional": {"factor"},
}
_OTHER_ROTATIONS = ("mrope_section", "mrope_interleaved", "interleaved", "llama_4_scaling_beta")

_Pairs = npt.NDArray[np.float64]  # a number for each pair of a head, (D/2,)


@dataclass(frozen=True)
class Rope:
    """Rotary positions, and the most of them that are right; cosines and sines are times `attention_factor`.

    `frequencies` are radians that a position turns each pair of a head by, the fast ones first; what is beyond the last
    pair is not turned.
    """

    frequencies: tuple[float, ...]
    context_limit: int
    attention_factor: float = 1.0
    notes: tuple[str, ...] = ()

    def tables(self, positions: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Cosines and sines, each (positions, pairs), float32 rounded from float64."""
        angles = np.arange(positions, dtype=np.float64)[:, None] * np.array(self.frequencies)
        cos, sin = np.cos(angles), np.sin(angles)
        return (self.attention_factor * cos).astype(np.float32), (self.attention_factor * sin).astype(np.float32)


def parse_rope(
    values: ConfigValues,
    head_dim: int,
    max_positions: int,
    missing_theta: float = 10000.0,
    rotates_part: bool = False,
) -> Rope:
    """Check the rotary settings of a config.json; `rotates_part` says that a head may be turned in part.

    Raises ModelConfigError for values that cannot be, UnsupportedModelError for what we do not run.
    """
    table, notes = _merged(values)
    settings = ConfigValues(table, values.where)
    theta = settings.number("rope_theta", 0.0, 1e15, missing_theta)
    kind = table.get("rope_type", table.get("type", "default"))
    if not isinstance(kind, str) or kind not in _KEYS:
        raise settings.unsupported(
            "rope_type" if "rope_type" in table else "type", f"not one of those that are supported: {', '.join(_KEYS)}"
        )
    rotary_dim = _rotary_dim(settings, kind, head_dim, rotates_part)
    for key in _OTHER_ROTATIONS:
        if table.get(key) not in (None, False):
            raise settings.unsupported(key, "which is not supported")
    unread = [key for key, value in table.items() if key not in _COMMON | _KEYS[kind] and value is not None]
    if unread:
        notes.append(f"config.json has keys that rope_type {show(kind)} does not read: {listed(unread)}")
    with np.errstate(all="ignore"):
        rope = _stretched(settings, kind, theta, rotary_dim, max_positions)
    if not np.isfinite(rope.frequencies).all():
        raise ModelConfigError(f"{values.where}: rotary positions turn by angles that are not finite")
    limit = rope.context_limit
    if kind == "dynamic":
        notes.append(f"rope_type 'dynamic' changes nothing up to {counted(limit, 'token')}, where the context ends")
    if limit < max_positions:
        notes.append(
            f"the context ends at {limit:,} of {counted(max_positions, 'token')}: beyond, rope_type {show(kind)} would "
            "turn all that was read before by other angles"
        )
    return replace(rope, notes=tuple(notes))


def _merged(values: ConfigValues) -> tuple[dict[str, Any], list[str]]:
    """The rotary settings in the flat form of `rope_parameters`, and what to tell of them."""
    tables = {key: values.table.get(key) for key in ("rope_scaling", "rope_parameters")}
    for key, table in tables.items():
        if table is None:
            continue
        if not isinstance(table, dict):
            raise values.error(key, "an object or null")
        if any(isinstance(value, dict) for value in table.values()):
            raise values.unsupported(key, "rotary settings that differ by layer type, which is not supported")
    old, new = tables.values()
    notes = []
    if old and new and old != new:
        notes.append("config.json has rope_scaling and rope_parameters: rope_scaling goes before, as in transformers")
    merged = dict(old or new or {})
    for key in ("rope_theta", "partial_rotary_factor"):
        if key in values.table:
            merged.setdefault(key, values.table[key])
    # Beside the table this one wins over the table's own.
    key, kind = "original_max_position_embeddings", str(merged.get("rope_type", merged.get("type", "default")))
    if key in values.table and key in _KEYS.get(kind, ()):
        merged[key] = values.table[key]
    return merged, notes


def _rotary_dim(settings: ConfigValues, kind: str, head_dim: int, rotates_part: bool) -> int:
    """Count the first elements of a head that are turned; "proportional" leaves slow pairs of all where they are."""
    key = "partial_rotary_factor"
    if kind == "proportional" or settings.table.get(key) in (None, 1):
        return head_dim
    if not rotates_part:
        raise settings.unsupported(key, "only 1.0 is supported")
    rotary_dim = int(head_dim * settings.number(key, 0.0, 1.0))
    if rotary_dim < 2 or rotary_dim % 2:
        raise settings.error(key, f"a share that is an even number of the {head_dim} elements of a head")
    return rotary_dim


def _stretched(settings: ConfigValues, kind: str, theta: float, rotary_dim: int, max_positions: int) -> Rope:
    """Rotary positions with the scaling of their kind."""
    plain: _Pairs = theta ** (-np.arange(0, rotary_dim, 2, dtype=np.float64) / rotary_dim)
    key = "original_max_position_embeddings"
    original = settings.whole(key, _MAX_POSITIONS, max_positions) if key in _KEYS[kind] else max_positions
    match kind:
        case "linear":
            return _rope(plain / _factor(settings), max_positions)
        case "dynamic":
            _factor(settings)  # which stretches nothing before the context ends
        case "llama3":
            return _rope(_llama3(settings, plain, original), max_positions)
        case "yarn":
            return _yarn(settings, plain, theta, original, max_positions)
        case "longrope":
            return _longrope(settings, plain, original, max_positions)
        case "proportional":
            share = settings.optional_number("partial_rotary_factor", 0.0, 1.0) or 1.0
            turned = np.arange(len(plain)) < int(share * rotary_dim // 2)
            return _rope(np.where(turned, plain / settings.number("factor", 0.0, 1e6, 1.0), 0.0), max_positions)
    return _rope(plain, max_positions)


def _rope(frequencies: _Pairs, context_limit: int, attention_factor: float = 1.0) -> Rope:
    return Rope(tuple(frequencies.tolist()), context_limit, attention_factor)


def _factor(settings: ConfigValues) -> float:
    return settings.number("factor", 0.0, 1e6)


def _llama3(settings: ConfigValues, plain: _Pairs, original: int) -> _Pairs:
    """Divide slow pairs (of whose waves fewer than `low_freq_factor` fit into the original context), not fast ones."""
    low = settings.number("low_freq_factor", 0.0, 1e6)
    high = settings.number("high_freq_factor", 0.0, 1e6)
    if low >= high:
        raise ModelConfigError(
            f"{settings.where}: low_freq_factor is {low:g}, must be below high_freq_factor, {high:g}"
        )
    waves = original * plain / (2 * np.pi)
    kept = np.clip((waves - low) / (high - low), 0.0, 1.0)
    return (1 - kept) * (plain / _factor(settings)) + kept * plain


def _yarn(settings: ConfigValues, plain: _Pairs, theta: float, original: int, max_positions: int) -> Rope:
    """Divide slow pairs, as llama3 does, but along the numbers of the pairs.

    The ramp runs from the pair that turns `beta_fast` times within the original context to the one that turns
    `beta_slow` times.
    """
    if theta == 1:
        raise settings.error("rope_theta", "other than 1 with rope_type 'yarn'")
    given = None if "factor" in settings.table and settings.table["factor"] is None else _factor(settings)
    factor = max_positions / original if given is None else given
    attention = settings.optional_number("attention_factor", 0.0, 1e6)
    mscale, mscale_all = (_unless_zero(settings, key, 0.0) for key in ("mscale", "mscale_all_dim"))
    if attention is None:
        attention = _mscale(factor, mscale) / _mscale(factor, mscale_all) if mscale and mscale_all else _mscale(factor)
    head_dim = 2 * len(plain)
    low, high = (
        head_dim * math.log(original / (_unless_zero(settings, key, turns) * 2 * math.pi)) / (2 * math.log(theta))
        for key, turns in (("beta_fast", 32.0), ("beta_slow", 1.0))
    )
    if "truncate" not in settings.table or settings.flag("truncate"):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    if low == high:
        high += 0.001
    divided = np.clip((np.arange(len(plain)) - low) / (high - low), 0.0, 1.0)
    limit = max(max_positions, min(int(factor * original), _MAX_POSITIONS))
    return _rope(plain / factor * divided + plain * (1 - divided), limit, attention)


def _mscale(factor: float, scale: float = 1.0) -> float:
    return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1.0


def _unless_zero(settings: ConfigValues, key: str, default: float) -> float:
    """A number above 0; `default` when the key is missing, null or 0, as in transformers."""
    return default if settings.table.get(key) in (None, 0) else settings.number(key, 0.0, 1e6)


def _longrope(settings: ConfigValues, plain: _Pairs, original: int, max_positions: int) -> Rope:
    """Divide every pair by a factor of its own."""
    if original < 2:
        raise settings.error("original_max_position_embeddings", "2 or more with rope_type 'longrope'")
    short = settings.numbers("short_factor", len(plain), 0.0, 1e6)
    settings.numbers("long_factor", len(plain), 0.0, 1e6)
    factor = settings.optional_number("factor", 0.0, 1e6)
    attention = settings.optional_number("attention_factor", 0.0, 1e6)
    if factor is None:
        factor = max_positions / original
    if attention is None:
        attention = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))
    return _rope(plain / np.array(short), min(max_positions, original), attention)
