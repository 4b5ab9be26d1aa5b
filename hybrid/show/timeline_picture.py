"""Lays out the picture of a timeline: one step, its spans as bars on a few tracks."""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from hybrid.errors import UsageError
from offload.devices.base import Span
from offload.observe.op_times import settled, undisturbed
from offload.observe.timeline import DECODE, Operator, Step
from offload.spec.units import format_seconds

WIDTH_IN = 16.0  # of the axis, in inches
_CHARACTER_IN = 0.078  # of a label, in inches
_CLOSER_BARS = 12  # bars of the host that the closer look shows

# Okabe and Ito's colours, which people with any colour vision can tell apart.
_TRACKS = {
    "islands": "#56B4E9",
    "attention": "#009E73",
    "Linears on the CPU": "#0072B2",
    "queueing, collecting": "#999999",
    "waiting": "#F0E442",
    "device: multiplying": "#D55E00",
    "device: activations": "#CC79A7",
    "device: weights in": "#E69F00",
}
_HOST_TRACKS = {
    Operator.ISLAND: "islands",
    Operator.ATTENTION: "attention",
    Operator.HOST_COLUMNS: "Linears on the CPU",
    Operator.QUEUE: "queueing, collecting",
    Operator.COLLECT: "queueing, collecting",
    Operator.WAIT: "waiting",
}


_SHORT = {
    "SkipSimplifiedLayerNormalization": "norm",
    "SimplifiedLayerNormalization": "norm",
    "LayerNormalization": "norm",
}
_SIMULATED = "the device is simulated: its bars are modelled, the waiting is for the simulation"


@dataclass(frozen=True)
class Bar:
    """A span on a track, by its number; milliseconds since the step began. A label is empty where there is no room."""

    track: int
    start_ms: float
    duration_ms: float
    label: str


@dataclass(frozen=True)
class Track:
    """A row of the picture; `share` is how much of the step it was busy."""

    name: str
    share: float
    colour: str


@dataclass(frozen=True)
class View:
    """A part of the step, with labels for the bars that have room for one at its scale."""

    title: str
    start_ms: float
    stop_ms: float
    bars: tuple[Bar, ...]


@dataclass(frozen=True)
class TimelinePicture:
    """The picture of one step: the whole of it, and a closer look where it has many bars."""

    title: str
    tracks: tuple[Track, ...]
    views: tuple[View, ...]


def timeline_picture(steps: Sequence[Step], model: str, modelled: bool) -> TimelinePicture:
    """Lay out the picture: the decode step of the middle duration, else the last step there is.

    The times of a `modelled` device are a simulated one's. Raises UsageError where there is no step.
    """
    if not steps:
        raise UsageError("--timeline: no whole step was recorded, so there is nothing to draw")
    step, which = _typical(steps)
    spans = [(track, span) for span in (*step.host, *step.devices) if (track := _track_name(span)) in _TRACKS]
    names = [name for name in _TRACKS if any(name == track for track, _ in spans)]
    bars = [_bar(step, names.index(track), span) for track, span in spans]
    whole_ms = step.duration_s * 1e3
    views = [_view("the whole step", 0.0, whole_ms, bars)]
    if closer := _closer(step):
        views.append(_view("a closer look at its middle", *closer, bars))
    device = "modelled " if modelled else ""
    title = f"{model} · {which}: {format_seconds(step.duration_s)}"
    return TimelinePicture(
        title=f"{title} · {_SIMULATED}" if modelled else title,
        tracks=tuple(
            Track(
                device + name if name.startswith("device") else name,
                _busy_ms((bar for bar in bars if bar.track == number), whole_ms) / whole_ms,
                _TRACKS[name],
            )
            for number, name in enumerate(names)
        ),
        views=tuple(views),
    )


def _typical(steps: Sequence[Step]) -> tuple[Step, str]:
    """The step to draw, and which it is."""
    decode = undisturbed(settled(steps, DECODE))
    if not decode:
        return steps[-1], f"{steps[-1].name}, the last step recorded"
    middle_s = statistics.median_high(step.duration_s for step in decode)
    step = next(step for step in decode if step.duration_s == middle_s)
    all_decode = [step for step in steps if step.name == DECODE]
    number = 1 + all_decode.index(step)
    return step, f"decode step {number} of {len(all_decode)} recorded, the one of middle duration"


def _track_name(span: Span) -> str:
    if span.operator in _HOST_TRACKS:
        return _HOST_TRACKS[Operator(span.operator)]
    if span.operator == Operator.GEMM:
        return "device: multiplying"
    if "weight" in span.track:
        return "device: weights in"
    return "device: activations"


def _bar(step: Step, track: int, span: Span) -> Bar:
    words = [span.operator]
    if span.operator in _HOST_TRACKS:
        words = [_SHORT.get(word, word) for word in span.what.split(", ") if word != "Cast"]
    label = ", ".join(words).replace("_proj", "")
    return Bar(track, (span.start_s - step.start_s) * 1e3, span.duration_s * 1e3, label)


def _view(title: str, start_ms: float, stop_ms: float, bars: Iterable[Bar]) -> View:
    """The bars in a part of the step, cut off at its ends."""
    shown = []
    for bar in bars:
        start, stop = max(bar.start_ms, start_ms), min(bar.start_ms + bar.duration_ms, stop_ms)
        if start < stop:
            room_in = (stop - start) / (stop_ms - start_ms) * WIDTH_IN
            label = bar.label if len(bar.label) * _CHARACTER_IN <= room_in else ""
            shown.append(replace(bar, start_ms=start, duration_ms=stop - start, label=label))
    return View(title, start_ms, stop_ms, tuple(shown))


def _closer(step: Step) -> tuple[float, float] | None:
    """The part in the middle of a step that has a dozen spans of the host; None for a step with few."""
    if len(step.host) < 2 * _CLOSER_BARS:
        return None
    spans = sorted(step.host, key=lambda span: span.start_s)
    first = (len(spans) - _CLOSER_BARS) // 2
    last = spans[first + _CLOSER_BARS - 1]
    return (spans[first].start_s - step.start_s) * 1e3, (last.stop_s - step.start_s) * 1e3


def _busy_ms(bars: Iterable[Bar], whole_ms: float) -> float:
    """Time within the step in which any of the bars was on."""
    busy = done = 0.0
    for bar in sorted(bars, key=lambda bar: bar.start_ms):
        start, stop = max(bar.start_ms, done), min(bar.start_ms + bar.duration_ms, whole_ms)
        busy += max(stop - start, 0.0)
        done = max(done, stop)
    return busy
