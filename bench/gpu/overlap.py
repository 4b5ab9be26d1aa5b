"""Part 5: do copies, GEMMs and the CPU work at the same time?

Layers whose Linears have resident, streamed and host columns run step after step, and then each of the three alone.
If nothing overlapped, the step would take the sum of the three; at best it takes the longest of them. The recorded
steps show the same from inside: when were the copy engine, the multiplying and the CPU busy together?
"""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from itertools import pairwise
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np

from bench.gpu.devices import open_device
from bench.gpu.job import Job, Json, Save
from bench.random_weights import DTYPES, Weights
from bench.shapes import Shape
from hybrid.machine.profiles import find_profile
from hybrid.machine.threads import default_threads
from offload.devices.base import Device, Span
from offload.host.backend import NumbaBackend
from offload.machine.profile import DeviceProfile
from offload.observe.op_times import settled
from offload.observe.timeline import DECODE, Operator, Step, Timeline, step
from offload.plan.placing import place
from offload.plan.plan import StreamRing
from offload.plan.request import PlanRequest
from offload.plan.shares import Shares
from offload.run.runner import LinearRunner
from offload.spec.arrays import HostArray
from offload.spec.linear import Layout, LinearSpec, WeightFormat
from offload.spec.step import StepShape
from offload.spec.units import MIB, counted, format_seconds
from offload.storage.stored_weight import StoredWeight

_RESIDENT = 0.5  # the rest is split so that bus and CPU need equally long, as far as the profile knows
_RING = StreamRing(16, 4 * MIB)
_TILE = 16
COPY, GEMM, CPU = "copy engine", "multiplying", "CPU"
_WORKERS = {
    Operator.COPY_IN: COPY,
    Operator.COPY_OUT: COPY,
    Operator.GEMM: GEMM,
    Operator.HOST_COLUMNS: CPU,
    Operator.ATTENTION: CPU,
    Operator.ISLAND: CPU,
}


def run(job: Job, save: Save) -> Json:
    """All three together, each alone, and what the recorded steps show."""
    profile = find_profile(job.machine or "generic-gpu")
    shares = balanced(profile)
    layers = Layers(job.sizes.layer, job.sizes.overlap_layers)
    placed = {"resident": shares.resident, "streamed": shares.streamed}
    found: Json = {"layers": job.sizes.overlap_layers, "shares": placed}
    with closing(open_device(job.device)) as device:
        host = NumbaBackend(job.sizes.threads or default_threads())
        host.warm_up([(WeightFormat.FP16, Layout.NK)])

        def step_s(shares: Shares, part: float, timeline: Timeline | None = None) -> float:
            return layers.step_s(device, host, profile, shares, part, job.sizes.overlap_steps, timeline)

        together_s = step_s(shares, 1.0)
        alone = {
            "resident": step_s(Shares(1.0), shares.resident),
            "streamed": step_s(Shares(0.0, 1.0), shares.streamed),
            "host": step_s(Shares(), 1 - shares.resident - shares.streamed),
        }
        found["step_s"] = {"together": together_s, **alone}
        found["overlap"] = overlap(together_s, list(alone.values()))
        save(found)
        timeline = Timeline()
        step_s(shares, 1.0, timeline)
    found["busy"] = busy_shares(settled(timeline.steps(), DECODE))
    return found


def overlap(together_s: float, alone_s: Sequence[float]) -> float:
    """1 when the step takes as long as its longest part, 0 when it takes as long as all parts one after another."""
    spare_s = sum(alone_s) - max(alone_s)
    return (sum(alone_s) - together_s) / spare_s if spare_s > 0 else 0.0


def balanced(profile: DeviceProfile) -> Shares:
    """Half resident; of the rest, as much streamed as the bus copies while the CPU multiplies what is left."""
    assert profile.gpu is not None
    bus, cpu = profile.gpu.bus_bytes_per_s, profile.cpu.ram_bytes_per_s_beside_bus
    return Shares(_RESIDENT, (1 - _RESIDENT) * bus / (bus + cpu))


def busy_shares(steps: Iterable[Step]) -> dict[str, float]:
    """Parts of the steps' time in which each worker was busy, and in which two or more, and all three were."""
    busy_s = dict.fromkeys((COPY, GEMM, CPU, "two or more", "all three"), 0.0)
    whole_s = 0.0
    for done in steps:
        whole_s += done.duration_s
        for workers, seconds in _together(done):
            for worker in workers:
                busy_s[worker] += seconds
            busy_s["two or more"] += seconds if len(workers) >= 2 else 0.0
            busy_s["all three"] += seconds if len(workers) == 3 else 0.0
    return {name: seconds / whole_s if whole_s else 0.0 for name, seconds in busy_s.items()}


def _together(done: Step) -> list[tuple[set[str], float]]:
    """The step cut into pieces in which the same workers are busy, with their seconds."""
    spans = [(span, worker) for span in (*done.host, *done.devices) if (worker := _worker(span))]
    cuts = {done.start_s, done.stop_s}
    for span, _ in spans:
        cuts |= {min(max(moment, done.start_s), done.stop_s) for moment in (span.start_s, span.stop_s)}
    moments = sorted(cuts)
    starts: dict[float, list[tuple[str, int]]] = {}
    for span, worker in spans:
        first, last = max(span.start_s, done.start_s), min(span.stop_s, done.stop_s)
        if first < last:
            starts.setdefault(first, []).append((worker, 1))
            starts.setdefault(last, []).append((worker, -1))
    counts = dict.fromkeys((COPY, GEMM, CPU), 0)
    pieces = []
    for moment, following in pairwise(moments):
        for worker, change in starts.get(moment, ()):
            counts[worker] += change
        pieces.append(({worker for worker, count in counts.items() if count}, following - moment))
    return pieces


def _worker(span: Span) -> str:
    return next((worker for operator, worker in _WORKERS.items() if span.operator == operator), "")


class Layers:
    """The Linears of some layers with random fp16 weights; layers share no memory."""

    def __init__(self, shape: Shape, layers: int) -> None:
        q, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
        hidden, inner = shape.hidden, shape.intermediate
        groups = (
            (("q_proj", q, hidden), ("k_proj", kv, hidden), ("v_proj", kv, hidden)),
            (("o_proj", hidden, q),),
            (("gate_proj", inner, hidden), ("up_proj", inner, hidden)),
            (("down_proj", hidden, inner),),
        )
        self._levels = [  # name, group, columns, features of the Linears of each
            [(f"{name}.{layer}", f"{members[0][0]}.{layer}", columns, features) for name, columns, features in members]
            for layer in range(layers)
            for members in groups
        ]
        weights = Weights(DTYPES["fp16"])
        self._weights: dict[str, HostArray] = {
            name: weights.tensor(name, (columns, features))
            for level in self._levels
            for name, _, columns, features in level
        }

    def step_s(
        self,
        device: Device,
        host: NumbaBackend,
        profile: DeviceProfile,
        shares: Shares,
        part: float,
        steps: int,
        timeline: Timeline | None,
    ) -> float:
        """The median seconds of a step over the first `part` of every Linear's columns, placed by `shares`."""
        specs = [[_spec(*linear, part) for linear in level] for level in self._levels]
        weights = {
            s.name: StoredWeight.dense(self._weights[s.name][: s.out_features], s.format, s.layout)
            for level in specs
            for s in level
        }
        request = PlanRequest(
            model="layers",
            linears=[spec for level in specs for spec in level],
            profile=profile,
            budget_bytes=device.memory().free_bytes,
            fixed_vram_bytes={},
            other_ram_bytes={},
            step=StepShape(()),
        )
        plan = place(request, lambda linear: shares, _RING if shares.streamed else None)
        names = [[spec.name for spec in level] for level in specs]
        with closing(LinearRunner(names, plan, weights, device, host, timeline)) as runner:
            inputs = [{s.group: np.ones((1, s.in_features), np.float32) for s in level} for level in specs]
            outputs = [{s.name: np.empty((1, s.out_features), np.float32) for s in level} for level in specs]
            if timeline is not None:
                timeline.start(device)
            times = _times_s(runner, inputs, outputs, steps, timeline)
            if timeline is not None:
                timeline.stop()  # before the streams are gone
        return median(times)


def _times_s(
    runner: LinearRunner,
    inputs: Sequence[Mapping[str, Any]],
    outputs: Sequence[Mapping[str, Any]],
    steps: int,
    timeline: Timeline | None,
) -> list[float]:
    """Seconds of every step, after two that warm up."""
    times = []
    for number in range(steps + 2):
        began_s = perf_counter()
        with step(timeline, DECODE if number >= 2 else "warming up"):
            for level, x in enumerate(inputs):
                runner.run(level, x, outputs[level])
        times.append(perf_counter() - began_s)
    return times[2:]


def _spec(name: str, group: str, columns: int, features: int, part: float) -> LinearSpec:
    width = max(_TILE, int(columns * part) // _TILE * _TILE)
    return LinearSpec(
        name=name,
        in_features=features,
        out_features=width,
        format=WeightFormat.FP16,
        layout=Layout.NK,
        weight_bytes=width * features * WeightFormat.FP16.itemsize_bytes,
        kind=name.partition(".")[0],
        layer=name.partition(".")[2],
        group=group,
    )


def markdown(found: Json) -> list[str]:
    """The times, and the shares of the recorded steps."""
    step_s: dict[str, float] = found["step_s"]
    alone = [seconds for name, seconds in step_s.items() if name != "together"]
    shares = found["shares"]
    host = 1 - shares["resident"] - shares["streamed"]
    lines = [
        f"{counted(found['layers'], 'layer')}, {shares['resident']:.0%} of the columns resident, "
        f"{shares['streamed']:.0%} streamed, {host:.0%} on the host.",
        "",
        "| step | time |",
        "|---|---|",
        *(f"| {name}{'' if name == 'together' else ', alone'} | {format_seconds(s)} |" for name, s in step_s.items()),
        f"| sum of the three | {format_seconds(sum(alone))} |",
        f"| longest of the three | {format_seconds(max(alone))} |",
        "",
        f"- overlap: {found['overlap']:.0%} (0% is the sum, 100% is the longest)",
    ]
    if "busy" in found:
        busy: dict[str, float] = found["busy"]
        lines.append(
            "- busy in the recorded steps: " + ", ".join(f"{name} {share:.0%}" for name, share in busy.items())
        )
    return lines
