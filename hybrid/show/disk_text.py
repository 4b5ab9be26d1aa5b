"""Warns people first of a plan that reads weights from the disk at every step."""

from collections.abc import Iterable

from offload.plan.plan import Plan
from offload.plan.ram_tiers import file_warnings


def disk_text(plan: Plan) -> str:
    """Say how much is read, and what would keep it in RAM; empty where nothing is read."""
    warnings = file_warnings(plan.placements)
    best = next((advice for advice in plan.advice if advice.fits_ram), None)
    if not warnings or best is None:
        return "".join(warnings)
    times = f"{best.speedup:.0f} times" if best.speedup >= 10 else f"{best.speedup:.1f} times"
    return f"{warnings[0]}: {best.change} would fit RAM (predicted {times} as fast)"


def without_disk(plan: Plan, lines: Iterable[str]) -> list[str]:
    """Notes or warnings of a plan but the one that `disk_text` has told."""
    told = file_warnings(plan.placements)
    return [line for line in lines if line not in told]
