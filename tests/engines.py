"""Engines for tests: any model under any placement, on the simulated device, without the command line."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hybrid.engine.engine import Engine
from hybrid.loading.open_engine import load
from hybrid.loading.opened_model import OpenedModel, open_for_run, opened_model
from hybrid.loading.planning import plan_request
from hybrid.loading.settings import RunSettings
from hybrid.loading.target import choose_target, look_in_profile
from offload.devices.base import Device
from offload.devices.simulated.device import SimulatedDevice
from offload.observe.timeline import Timeline
from offload.plan.placing import place
from offload.plan.plan import HostTier, Plan
from offload.plan.ram_tiers import READ_AHEAD, ram_bytes
from offload.plan.request import PlanRequest
from offload.plan.shares import Shares
from offload.run.recovery import Replanner
from offload.spec.linear import LinearSpec

SHARED_MODELS = Path(__file__).parents[2] / "shared" / "models"
_BUDGET_BYTES = 1 << 30


@dataclass(frozen=True)
class Placement:
    """A way to place the Linears of a model; `shares` gets each Linear and its number."""

    name: str
    shares: Callable[[int, LinearSpec], Shares]
    prefill_tokens: int = 0

    def __str__(self) -> str:
        return self.name


PLACEMENTS = (
    Placement("all resident", lambda number, linear: Shares(resident=1.0)),
    Placement("all streamed", lambda number, linear: Shares(streamed=1.0)),
    Placement("none", lambda number, linear: Shares()),
    Placement("half of the Linears", lambda number, linear: Shares(resident=1.0 if number % 2 else 0.0)),
    Placement("half of the columns", lambda number, linear: Shares(resident=0.5)),
    Placement("three ways", lambda number, linear: Shares(resident=0.4, streamed=0.3)),
)


@dataclass(frozen=True)
class Golden:
    """The prompt of a model and the ids it has to generate."""

    prompt_ids: list[int]
    greedy_ids: list[int]
    first_step_logits: npt.NDArray[np.float64]


def read_golden(path: Path) -> Golden:
    """The golden tokens of a model, or what plain onnxruntime makes of an export (`ort.json`)."""
    content: dict[str, Any] = json.loads(path.read_text())
    prefix = "ort_" if "ort_greedy_ids" in content else ""
    return Golden(
        content["prompt_ids"],
        content[f"{prefix}greedy_ids"],
        np.asarray(content[f"{prefix}first_step_logits"], np.float64),
    )


@cache
def open_settings(model: Path) -> OpenedModel:
    """Open a model with its default context; once, so it is not for files that change."""
    return open_for_run(RunSettings(model=model))


def engine_on_cpu(opened: OpenedModel, whole: bool = False) -> Engine:
    """The engine of `--cuda 0`; `whole` leaves everything to one onnxruntime session."""
    if whole:
        linears = tuple(
            replace(linear, spec=replace(linear.spec, host_only_reason="whole")) for linear in opened.linears
        )
        opened = opened_model(
            opened.decoder, linears, opened.context_tokens, (), opened.host_format, opened.activations
        )
    target = choose_target(RunSettings(cuda="0"), look_in_profile)
    return load(opened, Replanner(plan_request(opened, target, {})), None, threads=2)


def engine_with_files(opened: OpenedModel, every: int) -> Engine:
    """As `engine_on_cpu`, with every so manyth Linear read from its file at every step, where it can be."""

    def planner(request: PlanRequest) -> Plan:
        plan = place(replace(request, ram_budget_bytes=0), lambda linear: Shares())
        placements = tuple(
            placement if number % every == 0 else replace(placement, tier=HostTier.RAM)
            for number, placement in enumerate(plan.placements)
        )
        return replace(plan, placements=placements, read_ahead_bytes=ram_bytes(placements, {})[READ_AHEAD])

    target = choose_target(RunSettings(cuda="0"), look_in_profile)
    replanner = Replanner(plan_request(opened, target, {}), planner)
    return load(opened, replanner, None, threads=2)


def engine_on_simulated(opened: OpenedModel, placement: Placement, in_files: bool = False) -> Engine:
    """An engine with this placement on a simulated device.

    With `in_files`, host columns are read from the file at every step.
    """
    numbers = {linear.spec.name: number for number, linear in enumerate(opened.linears)}
    return engine_on(
        SimulatedDevice(_BUDGET_BYTES),
        opened,
        lambda request: place(
            replace(request, ram_budget_bytes=0 if in_files else None),
            lambda linear: placement.shares(numbers[linear.name], linear),
            prefill_tokens=placement.prefill_tokens,
        ),
    )


def engine_on(
    device: Device,
    opened: OpenedModel,
    planner: Callable[[PlanRequest], Plan],
    budget_bytes: int | None = None,
    threads: int = 2,
    timeline: Timeline | None = None,
) -> Engine:
    """An engine on a device; the budget counts weights and buffers."""
    target = choose_target(RunSettings(cuda="1", device="simulated"), look_in_profile)
    request = plan_request(opened, target, {})
    if budget_bytes is not None:
        request = replace(request, budget_bytes=budget_bytes, fixed_vram_bytes={"context": 0, "workspace": 0})
    return load(opened, Replanner(request, planner), device, threads, timeline=timeline)


def greedy(
    engine: Engine, prompt_ids: list[int], count: int, chunk: int | None = None
) -> tuple[list[int], npt.NDArray[np.float32]]:
    """`count` greedy ids after the prompt, and the logits after it; `chunk` tokens of it at a time, or all."""
    chunk = chunk or len(prompt_ids)
    for start in range(0, len(prompt_ids), chunk):
        logits = first = engine.prefill(prompt_ids[start : start + chunk])
    ids: list[int] = []
    while True:
        ids.append(int(logits.argmax()))
        if len(ids) == count:
            return ids, first
        logits = engine.decode(ids[-1])
