"""The predicted decode step beside the measured one."""

import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hybrid.machine.cpu_load import OthersLoad
from offload.plan.plan import Prediction

if TYPE_CHECKING:
    from hybrid.engine.engine import Engine
    from hybrid.text.generate import GenerationStats

_FEWEST_STEPS = 8  # fewer say little of how long one takes
_FAR_OVER = 1.5  # times the predicted step


@dataclass(frozen=True)
class Truth:
    """A decode step as it was predicted and as it was measured, a median."""

    predicted: Prediction
    measured_s: float

    @property
    def measured_over_predicted(self) -> float:
        """1 for a prediction that came true, 2 when the step took twice as long."""
        return self.measured_s / self.predicted.decode_step_s


def compare(stats: "GenerationStats", engine: "Engine") -> Truth | None:
    """The prediction beside the measurement; None for too few steps, and where a device was only simulated."""
    if len(stats.step_s) < _FEWEST_STEPS or engine.simulated:
        return None
    # The first step also binds buffers, which a mean over few steps would show and a median does not.
    return Truth(engine.plan.predicted, statistics.median(stats.step_s))


def slow_because(truth: Truth | None, others: OthersLoad | None) -> str:
    """A clause on what made steps far slower than predicted, and what to try; empty where others were not it."""
    if truth is None or others is None or truth.measured_over_predicted < _FAR_OVER or not others.is_heavy:
        return ""
    left = int(others.cpus - others.busy_cpus)
    fewer = f", or try --threads {left}" if 0 < left < others.cpus else ""
    return f"slower than predicted, since {others}: end them{fewer}"
