"""Budgets: what `--cuda` and `--ram` say, and how many bytes of VRAM `--cuda` is on a device."""

import re
from dataclasses import dataclass

from offload.errors import BudgetError
from offload.spec.units import MIB, format_bytes, parse_size

_PERCENT = re.compile(r"\s*([0-9]*\.?[0-9]+)\s*%\s*")
_AUTO_MARGIN_BYTES = 256 * MIB  # left free for a display and for other programs' growth
_AUTO_MARGIN_SHARE = 0.05


@dataclass(frozen=True)
class Budget:
    """A budget as asked for: `nbytes`, or a `share` of the device's memory, or with neither, "auto"."""

    nbytes: int | None = None
    share: float | None = None

    @property
    def is_zero(self) -> bool:
        """True when the GPU is not to be touched."""
        return self.nbytes == 0 or self.share == 0.0


AUTO = Budget()


@dataclass(frozen=True)
class ResolvedBudget:
    """A budget in bytes, with one line for people when it is not what was asked for.

    `most_bytes` is what "auto" would come to: more should not be asked for.
    """

    nbytes: int
    note: str = ""
    most_bytes: int = 0


def parse_budget(text: str, flag: str = "--cuda") -> Budget:
    """Read "6", "0.5", "6GiB", "800MiB", "80%", "auto" or "0", given with `flag`. Raises BudgetError."""
    if text.strip().lower() == "auto":
        return AUTO
    if text.strip().startswith("-"):
        hint = "; 0 keeps everything on the CPU" if flag == "--cuda" else ""
        raise BudgetError(f"{flag} {text}: a budget cannot be negative{hint}")
    percent = _PERCENT.fullmatch(text)
    if percent is not None:
        share = float(percent[1]) / 100
        if share > 1:
            raise BudgetError(f"{flag} {text}: a share cannot be above 100% of the device's memory")
        return Budget(share=share)
    try:
        return Budget(nbytes=parse_size(text))
    except BudgetError:
        zero = " or 0" if flag == "--cuda" else ""
        raise BudgetError(
            f"{flag} {text}: not a budget; write GiB (6, 0.5, 6GiB), MiB (800MiB), a share (80%), auto{zero}"
        ) from None


def resolve_budget(budget: Budget, free_bytes: int, total_bytes: int) -> ResolvedBudget:
    """The budget in bytes on a device with this much memory free and in all; more than is free is clamped."""
    margin_bytes = max(_AUTO_MARGIN_BYTES, int(total_bytes * _AUTO_MARGIN_SHARE))
    most_bytes = max(0, free_bytes - margin_bytes)
    if budget.nbytes is not None:
        asked = budget.nbytes
    elif budget.share is not None:
        asked = int(budget.share * total_bytes)
    else:
        return ResolvedBudget(most_bytes, most_bytes=most_bytes)
    if asked <= free_bytes:
        return ResolvedBudget(asked, most_bytes=most_bytes)
    return ResolvedBudget(
        free_bytes,
        f"asked for {format_bytes(asked)} of VRAM, {format_bytes(free_bytes)} of {format_bytes(total_bytes)} are free: "
        f"the budget is {format_bytes(free_bytes)}",
        most_bytes,
    )
