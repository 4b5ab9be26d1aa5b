"""Predicted against measured decode steps on the CPU: `python -m bench.prediction --model DIR [--model DIR ...]`.

Each round calibrates the machine anew, then runs every model at every depth, so that predictions and steps are
of the same minutes. Prints measured / predicted time for each cell, the median over the rounds; `--json` prints all.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from hybrid.engine.engine import Engine
from hybrid.engine.island import array_of
from hybrid.loading.open_engine import load
from hybrid.loading.opened_model import open_for_run
from hybrid.loading.planning import plan_request
from hybrid.loading.settings import RunSettings
from hybrid.loading.target import choose_target, look_in_profile
from hybrid.machine.profiles import save_profile
from hybrid.machine.threads import default_threads
from hybrid.tune.calibration import measure_machine
from offload.plan.placed_model import PlacedModel
from offload.plan.placing import NO_RING, predict
from offload.run.recovery import Replanner

_STEPS = 12


@dataclass(frozen=True)
class PredictedStep:
    """One model at one depth in one round; seconds of a decode step."""

    model: str
    depth: int
    round: int
    measured_s: float
    predicted_s: float

    @property
    def ratio(self) -> float:
        """Measured time over predicted time; above 1 the prediction promised too much."""
        return self.measured_s / self.predicted_s


def measure(
    model: Path, kept_as: str | None, depths: list[int], machine: Path, number: int, threads: int
) -> list[PredictedStep]:
    """Decode steps of `--cuda 0`, and what a plan with the profile `machine` expects of them."""
    settings = RunSettings(model=model, cuda="0", machine=str(machine), threads=threads, host_dtype=kept_as)
    name = f"{model.name} {kept_as or ''}".strip()
    opened = open_for_run(settings)
    request = plan_request(opened, choose_target(settings, look_in_profile), {})
    replanner = Replanner(request)
    plan = replanner.plan
    cells = []
    with load(opened, replanner, None, threads) as engine:
        _fill_cache(engine)
        limit = engine.context_tokens - _STEPS - 1
        for depth in sorted({min(depth, limit) for depth in depths}):
            expected = predict(request, PlacedModel.of(plan.placements), NO_RING, depth)
            cells.append(PredictedStep(name, depth, number, _step_s(engine, depth), expected.decode_step_s))
    return cells


def _fill_cache(engine: Engine) -> None:
    """Touch all of the cache: memory that was never written reads as one page of zeros, from the processor's cache."""
    for value in engine._cache.fixed.values():
        array_of(value)[...] = 0.01


def _step_s(engine: Engine, depth: int) -> float:
    times = []
    for _ in range(_STEPS):
        engine._held = [5] * depth
        started = time.perf_counter()
        engine.decode(5)
        times.append(time.perf_counter() - started)
    return statistics.median(times[2:])


def main() -> None:
    """Measure as the flags say and print a table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, action="append", required=True)
    parser.add_argument(
        "--host-dtype", nargs="*", default=[], choices=("int8", "int4"), help="the first model, quantised on load, too"
    )
    parser.add_argument("--depth", type=int, action="append", help="0, 1024 and 4000, or what the context allows")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=default_threads())
    parser.add_argument("--json", action="store_true")
    flags = parser.parse_args()
    cells: list[PredictedStep] = []
    runs = [(model, None) for model in flags.model] + [(flags.model[0], kept_as) for kept_as in flags.host_dtype]
    with tempfile.TemporaryDirectory() as folder:
        machine = Path(folder) / "machine.json"
        for number in range(flags.rounds):
            made = measure_machine("cpu", flags.threads, Path(folder), lambda stage, share: None)
            save_profile(made.profile, machine)
            for model, kept_as in runs:
                cells += measure(model, kept_as, flags.depth or [0, 1024, 4000], machine, number, flags.threads)
                print(f"round {number}: {model.name} {kept_as or ''}", file=sys.stderr)
    if flags.json:
        print(json.dumps([asdict(cell) | {"ratio": cell.ratio} for cell in cells]))
        return
    print(f"{'model':28} {'depth':>6} {'measured ms':>12} {'predicted ms':>13} {'ratio':>6}  by round")
    for model, depth in dict.fromkeys((cell.model, cell.depth) for cell in cells):
        here = [cell for cell in cells if (cell.model, cell.depth) == (model, depth)]
        measured_s, predicted_s, ratio = (
            statistics.median(getattr(cell, name) for cell in here) for name in ("measured_s", "predicted_s", "ratio")
        )
        rounds = " ".join(f"{cell.ratio:.2f}" for cell in here)
        print(f"{model:28} {depth:6} {measured_s * 1e3:12.1f} {predicted_s * 1e3:13.1f} {ratio:6.2f}  {rounds}")


if __name__ == "__main__":
    main()
