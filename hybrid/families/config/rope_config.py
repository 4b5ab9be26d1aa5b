"""The rotary settings of config.json, checked, as plain data.

transformers 5 gathers them in `rope_parameters`; older files have `rope_theta` and `rope_scaling` beside it. All forms
are read, with the precedence that transformers gives them.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

from hybrid.errors import ModelConfigError
from hybrid.families.config.values import ConfigValues
from hybrid.shown import listed, show
from offload.spec.units import counted

Kind = Literal["none", "linear", "llama3", "yarn", "longrope", "proportional"]

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


@dataclass(frozen=True)
class RopeScaling:
    """The stretching of rotary frequencies; what a kind does not use is left at its default."""

    kind: Kind = "none"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_positions: int = 0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    pair_factors: tuple[float, ...] = ()  # longrope: one of every pair of a head
    rotated_share: float = 1.0  # proportional: of the pairs of a head, the fast ones first
    attention_factor: float = 1.0  # cosines and sines are multiplied by it


@dataclass(frozen=True)
class Rope:
    """Rotary positions: the base, the stretching, and the most positions that they are right for."""

    theta: float
    scaling: RopeScaling
    context_limit: int
    notes: tuple[str, ...] = ()


def parse_rope(values: ConfigValues, head_dim: int, max_positions: int) -> Rope:
    """Check the rotary settings of a config.json.

    Raises ModelConfigError for values that cannot be, UnsupportedModelError for what we do not run.
    """
    table, notes = _merged(values)
    rope = ConfigValues(table, values.where)
    theta = rope.number("rope_theta", 0.0, 1e15, 10000.0)
    kind = table.get("rope_type", table.get("type", "default"))
    if not isinstance(kind, str) or kind not in _KEYS:
        raise rope.unsupported(
            "rope_type" if "rope_type" in table else "type", f"not one of those that are supported: {', '.join(_KEYS)}"
        )
    _check_rotated(rope, kind)
    for key in _OTHER_ROTATIONS:
        if table.get(key) not in (None, False):
            raise rope.unsupported(key, "which is not supported")
    unread = [key for key, value in table.items() if key not in _COMMON | _KEYS[kind] and value is not None]
    if unread:
        notes.append(f"config.json has keys that rope_type {show(kind)} does not read: {listed(unread)}")
    scaling, limit = _scaling(rope, kind, theta, head_dim, max_positions)
    if kind == "dynamic":
        notes.append(f"rope_type 'dynamic' changes nothing up to {counted(limit, 'token')}, where the context ends")
    if limit < max_positions:
        notes.append(
            f"the context ends at {limit:,} of {counted(max_positions, 'token')}: beyond, rope_type {show(kind)} would "
            "turn all that was read before by other angles"
        )
    return Rope(theta, scaling, limit, tuple(notes))


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
    key = "original_max_position_embeddings"
    if key in values.table and "original_max_position_embeddings" in _KEYS.get(_kind(merged), ()):
        merged[key] = values.table[key]
    return merged, notes


def _kind(table: dict[str, Any]) -> str:
    return str(table.get("rope_type", table.get("type", "default")))


def _check_rotated(rope: ConfigValues, kind: str) -> None:
    """Heads are turned whole, but by "proportional", which leaves their slow pairs where they are."""
    share = rope.table.get("partial_rotary_factor")
    if share not in (None, 1) and kind != "proportional":
        raise rope.unsupported("partial_rotary_factor", "only 1.0 is supported")


def _scaling(rope: ConfigValues, kind: str, theta: float, head_dim: int, max_positions: int) -> tuple[RopeScaling, int]:
    """The stretching, and the most positions it is right for."""
    if kind == "linear":
        return RopeScaling("linear", _factor(rope)), max_positions
    if kind == "dynamic":
        _factor(rope)  # which stretches nothing before the context ends
        return RopeScaling(), max_positions
    if kind == "llama3":
        return _llama3(rope, max_positions), max_positions
    if kind == "yarn":
        yarn = _yarn(rope, theta, max_positions)
        stretched = min(int(yarn.factor * yarn.original_max_positions), _MAX_POSITIONS)
        return yarn, max(max_positions, stretched)
    if kind == "longrope":
        longrope = _longrope(rope, head_dim, max_positions)
        return longrope, min(max_positions, longrope.original_max_positions)
    if kind == "proportional":
        share = rope.optional_number("partial_rotary_factor", 0.0, 1.0) or 1.0
        return RopeScaling("proportional", rope.number("factor", 0.0, 1e6, 1.0), rotated_share=share), max_positions
    return RopeScaling(), max_positions


def _factor(rope: ConfigValues) -> float:
    return rope.number("factor", 0.0, 1e6)


def _original(rope: ConfigValues, max_positions: int) -> int:
    return rope.whole("original_max_position_embeddings", _MAX_POSITIONS, max_positions)


def _llama3(rope: ConfigValues, max_positions: int) -> RopeScaling:
    low = rope.number("low_freq_factor", 0.0, 1e6)
    high = rope.number("high_freq_factor", 0.0, 1e6)
    if low >= high:
        raise ModelConfigError(f"{rope.where}: low_freq_factor is {low:g}, must be below high_freq_factor, {high:g}")
    return RopeScaling("llama3", _factor(rope), low, high, _original(rope, max_positions))


def _yarn(rope: ConfigValues, theta: float, max_positions: int) -> RopeScaling:
    if theta == 1:
        raise rope.error("rope_theta", "other than 1 with rope_type 'yarn'")
    original = _original(rope, max_positions)
    given = None if "factor" in rope.table and rope.table["factor"] is None else _factor(rope)
    factor = max_positions / original if given is None else given
    attention = rope.optional_number("attention_factor", 0.0, 1e6)
    mscale, mscale_all = (_unless_zero(rope, key, 0.0) for key in ("mscale", "mscale_all_dim"))
    if attention is None:
        attention = _mscale(factor, mscale) / _mscale(factor, mscale_all) if mscale and mscale_all else _mscale(factor)
    return RopeScaling(
        "yarn",
        factor,
        original_max_positions=original,
        beta_fast=_unless_zero(rope, "beta_fast", 32.0),
        beta_slow=_unless_zero(rope, "beta_slow", 1.0),
        truncate=rope.flag("truncate") if "truncate" in rope.table else True,
        attention_factor=attention,
    )


def _mscale(factor: float, scale: float = 1.0) -> float:
    return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1.0


def _unless_zero(rope: ConfigValues, key: str, default: float) -> float:
    """A number above 0; `default` when the key is missing, null or 0, as in transformers."""
    return default if rope.table.get(key) in (None, 0) else rope.number(key, 0.0, 1e6)


def _longrope(rope: ConfigValues, head_dim: int, max_positions: int) -> RopeScaling:
    original = _original(rope, max_positions)
    if original < 2:
        raise rope.error("original_max_position_embeddings", "2 or more with rope_type 'longrope'")
    short = rope.numbers("short_factor", head_dim // 2, 0.0, 1e6)
    rope.numbers("long_factor", head_dim // 2, 0.0, 1e6)
    factor = rope.optional_number("factor", 0.0, 1e6)
    attention = rope.optional_number("attention_factor", 0.0, 1e6)
    if factor is None:
        factor = max_positions / original
    if attention is None:
        attention = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))
    return RopeScaling(
        "longrope",
        factor,
        original_max_positions=original,
        pair_factors=short,
        attention_factor=attention,
    )
