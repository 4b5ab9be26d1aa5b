"""Sizes as people write them. GB and GiB both mean 2**30 bytes, as nvidia-smi's MiB are 2**20."""

import math
import re

from offload.errors import BudgetError

GIB = 1 << 30
MIB = 1 << 20
_UNITS = {"": GIB, "g": GIB, "gb": GIB, "gib": GIB, "m": MIB, "mb": MIB, "mib": MIB}
_SIZE = re.compile(r"\s*([0-9]*\.?[0-9]+)\s*([a-zA-Z]*)\s*")


def parse_size(text: str) -> int:
    """Bytes of "6", "0.5", "6GiB", "6 GB" or "800MiB"; a plain number is GiB. Raises BudgetError."""
    match = _SIZE.fullmatch(text)
    if match is None or match[2].lower() not in _UNITS:
        raise BudgetError(f"cannot read the size {text!r}; write 6, 0.5, 6GiB or 800MiB")
    size = float(match[1]) * _UNITS[match[2].lower()]
    if not math.isfinite(size) or size >= 1 << 60:
        raise BudgetError(f"the size {text!r} is beyond any device")
    return int(size)


def counted(count: int, one: str, more: str = "") -> str:
    """A number of things for people: "1 token", "2,000 tokens"; `more` where the plural is not `one` and an s."""
    return f"{count:,} {one if count == 1 else more or one + 's'}"


def format_bytes(nbytes: float) -> str:
    """A size for people, in GiB, MiB, KiB or bytes; what would be rounded up to 1024 is 1.00 of the next unit."""
    for unit, name in ((GIB, "GiB"), (MIB, "MiB"), (1024, "KiB")):
        if nbytes >= unit - unit // 2048:
            return f"{nbytes / unit:.2f} {name}" if nbytes < 100 * unit else f"{nbytes / unit:.0f} {name}"
    return f"{nbytes:.0f} B"


def format_seconds(seconds: float) -> str:
    """A duration for people, in s, ms or µs."""
    for unit, name in ((1.0, "s"), (1e-3, "ms")):
        if seconds >= unit:
            return f"{seconds / unit:.3g} {name}"
    return f"{seconds * 1e6:.3g} µs"
