"""Time real decode steps of small models, and solve for what a step costs besides its Linears."""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from time import perf_counter

from hybrid.engine.engine import Engine
from hybrid.loading.open_engine import load
from hybrid.loading.opened_model import open_for_run
from hybrid.loading.planning import plan_request
from hybrid.loading.settings import RunSettings
from hybrid.loading.target import choose_target, look_in_profile
from hybrid.tune.zero_model import ZeroShape, write_zero_model
from offload.calibrate.machine import StepCosts
from offload.calibrate.rounds import rounds_within
from offload.observe.timeline import Timeline
from offload.run.recovery import Replanner

_MORE_LAYERS = 3  # of the second model, on top of the first one's only layer


@dataclass(frozen=True)
class StepEffort:
    """The effort of timing: which model, how many steps."""

    shape: ZeroShape
    steps: int = 8
    rounds: int = 7
    longest_s: float = 8.0  # of all rounds together, on a machine that is busy


def effort_within(nbytes: int) -> StepEffort:
    """The largest models whose weights fit into `nbytes` bytes of RAM, but for the very least."""
    shape = ZeroShape(layers=1, hidden=2048, intermediate=5632, heads=32, positions=2048)
    while (_MORE_LAYERS + 2) * shape.layer_bytes > nbytes and shape.hidden > 256:
        shape = replace(
            shape, hidden=shape.hidden // 2, intermediate=shape.intermediate // 2, heads=max(4, shape.heads // 2)
        )
    return StepEffort(shape)


def measure_step_costs(folder: Path, threads: int, effort: StepEffort) -> StepCosts:
    """Measure a decode step besides its Linears, Python included. Writes two models into `folder`.

    With one layer and with more, by turns, at an empty cache; Linears are timed apart and subtracted. What layers add
    is islands, what is left is the step's own.
    """
    shape = effort.shape
    larger = replace(shape, layers=shape.layers + _MORE_LAYERS)
    with ExitStack() as stack:
        one = stack.enter_context(_TimedModel(write_zero_model(folder / "one", shape), threads, effort.steps))
        more = stack.enter_context(_TimedModel(write_zero_model(folder / "more", larger), threads, effort.steps))
        times: list[tuple[float, float]] = []
        for counts in rounds_within(effort.rounds, effort.longest_s):
            reading = one.other_s(), more.other_s()
            if counts:
                times.append(reading)
        one_s, more_s = map(median, zip(*times, strict=True))
    island_s = max(0.0, (more_s - one_s) / (more.islands - one.islands))
    return StepCosts(step_s=max(0.0, one_s - one.islands * island_s), island_s=island_s)


class _TimedModel:
    """An engine on the CPU, and the time of its steps less that of their Linears."""

    def __init__(self, model: Path, threads: int, steps: int) -> None:
        self._steps = steps
        self._timeline = Timeline()
        settings = RunSettings(model=model, cuda="0", machine="generic-cpu")
        opened = open_for_run(settings)
        request = plan_request(opened, choose_target(settings, look_in_profile), {})
        replanner = Replanner(request)
        self.islands = request.step.islands  # as the cost model counts them
        self._engine = load(opened, replanner, None, threads, timeline=self._timeline)

    def __enter__(self) -> "_TimedModel":
        return self

    def __exit__(self, *_: object) -> None:
        self._engine.close()

    def other_s(self) -> float:
        """Median seconds of a step with an empty cache, without its Linears."""
        return median(self._other_times())

    def _other_times(self) -> Iterator[float]:
        for _ in range(self._steps):
            self._engine.trim(0)
            before = len(self._timeline.spans())
            elapsed_s = _step_s(self._engine)
            yield elapsed_s - sum(s.duration_s for s in self._timeline.spans()[before:] if s.track == "linears")


def _step_s(engine: Engine) -> float:
    """Seconds of a step as a text has it, without handing it over to the engine's thread."""

    def timed() -> float:
        started = perf_counter()
        engine.decode(3)
        return perf_counter() - started

    return engine.alone(timed)
