"""Adds up the spans of a timeline over layers and steps, to show where the time of steps goes."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from offload.devices.base import Span
from offload.observe.timeline import Step

BETWEEN = "between"  # what the spans of the host leave of a step


@dataclass(frozen=True)
class OpTime:
    """The time of one operator, a mean over steps; `count` is how often it ran in a step, `share` its part of the step.

    Spans with the same `operator` and `what` are one OpTime, in whichever layers they are.
    """

    operator: str
    what: str
    count: float
    mean_s: float
    share: float


@dataclass(frozen=True)
class OpTimes:
    """The operators of the steps, the longest first. `host` adds up to the step; `inside` is part of its islands, and
    what `device` did ran beside it.
    """

    steps: int
    mean_step_s: float
    host: tuple[OpTime, ...]
    inside: tuple[OpTime, ...]
    device: tuple[OpTime, ...]
    modelled: bool  # True: the times of `device` are a simulated one's


def settled(steps: Sequence[Step], name: str) -> tuple[Step, ...]:
    """The steps called `name` without the first of them, which binds buffers; unless it is the only one."""
    named = [step for step in steps if step.name == name]
    return tuple(named[1:] or named)


def undisturbed(steps: Sequence[Step]) -> Sequence[Step]:
    """The steps that were not looked into, which slows them down; all of them when there are no others."""
    return [step for step in steps if not step.inside] or steps


def op_times(steps: Sequence[Step], modelled: bool) -> OpTimes | None:
    """Add up the spans of `steps`; None where there are no steps.

    What was inside islands is from the steps that were looked into, all else from the others.
    """
    if not steps:
        return None
    looked_into = [step for step in steps if step.inside]
    calm = undisturbed(steps)
    mean_step_s = sum(step.duration_s for step in calm) / len(calm)
    host = _add_up([step.host for step in calm], mean_step_s)
    between_s = mean_step_s - sum(row.mean_s for row in host)
    return OpTimes(
        steps=len(calm),
        mean_step_s=mean_step_s,
        host=_longest_first((*host, OpTime(BETWEEN, "", 1, between_s, between_s / mean_step_s))),
        inside=_longest_first(_add_up([step.inside for step in looked_into], mean_step_s)),
        device=_longest_first(_add_up([step.devices for step in calm], mean_step_s)),
        modelled=modelled,
    )


def _add_up(steps: Sequence[Iterable[Span]], mean_step_s: float) -> list[OpTime]:
    durations: dict[tuple[str, str], list[float]] = defaultdict(list)
    for span in (span for spans in steps for span in spans):
        durations[span.operator, span.what].append(span.duration_s)
    return [
        OpTime(operator, what, len(times) / len(steps), (mean_s := sum(times) / len(steps)), mean_s / mean_step_s)
        for (operator, what), times in durations.items()
    ]


def _longest_first(rows: Iterable[OpTime]) -> tuple[OpTime, ...]:
    return tuple(sorted(rows, key=lambda row: (-row.mean_s, row.operator, row.what)))
