"""Linears that outlive what a device can give: refused memory makes the plan smaller, a lost device empties it.

A level reads and writes host arrays only and overwrites its outputs wholly, so it can be run again under another plan.
"""

import gc
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from offload.errors import DeviceLostError, OutOfDeviceMemoryError, OverBudgetError
from offload.plan.plan import Plan
from offload.plan.planner import make_plan
from offload.plan.request import PlanRequest
from offload.spec.arrays import FloatArray
from offload.spec.units import MIB, format_bytes

if TYPE_CHECKING:
    from offload.run.runner import LinearRunner


DRIVER = "driver"  # the name of what it takes more than it was asked for, in a plan
_UNKNOWN_BYTES = 32 * MIB  # what a library wanted that does not say; cuBLAS's workspace takes as much


class Replanner:
    """Holds the plan in force and makes smaller ones; `plan.warnings` then has a line for each time.

    What the driver takes more than it was asked for is counted in without a warning: a note says so.
    `budget_bytes` is the budget at the beginning, `peak_vram_bytes` the most that any plan so far took.
    """

    def __init__(
        self, request: PlanRequest, planner: Callable[[PlanRequest], Plan] = make_plan, plan: Plan | None = None
    ) -> None:
        """`plan` is the first plan, where it is made already."""
        self.plan = planner(request) if plan is None else plan
        self.budget_bytes = request.budget_bytes
        self.peak_vram_bytes = self.plan.total_vram_bytes
        self._request = request
        self._planner = planner
        self._refusals = 0
        self._lines: tuple[str, ...] = ()
        self._driver_bytes = 0  # what it takes more than it was asked for

    def shrink(self, failure: OutOfDeviceMemoryError | DeviceLostError) -> str:
        """Plan again, without a lost device or with less by what was asked for; gives the line that says so.

        Where the device says that a part of what was asked for is free, only what is missing is taken away: one block
        holds all resident weights. The least that is taken away doubles every time, so that it comes to an end, with
        all on the host. The line is empty where the run keeps its budget, and only something has to be counted in.
        """
        if isinstance(failure, DeviceLostError):
            return self._plan_again(0, f"the GPU is lost ({failure})", "")
        least_bytes = MIB << self._refusals
        self._refusals += 1
        if isinstance(failure, OverBudgetError):
            self._count_in(failure.limit_bytes - self.plan.total_vram_bytes + max(failure.missing_bytes, least_bytes))
            return self._plan_again(self._request.budget_bytes, self._driver_note(), "")
        less_bytes = max(_missing_bytes(failure), least_bytes)
        what = _refused(failure)
        pinned_bytes = self.plan.ram_bytes.get("pinned weights", 0)
        if failure.pinned and pinned_bytes:
            limit_bytes = max(0, pinned_bytes - less_bytes)
            self._request = replace(self._request, pinned_limit_bytes=limit_bytes)
            streamed = f"at most {format_bytes(limit_bytes)} of weights are" if limit_bytes else "no weights are"
            return self._plan_again(self._request.budget_bytes, what, f"{streamed} streamed now")
        budget_bytes = max(0, min(self._request.budget_bytes, self.plan.total_vram_bytes) - less_bytes)
        return self._plan_again(budget_bytes, what, f"the budget is now {format_bytes(budget_bytes)}")

    def warn(self, line: str) -> None:
        """Add a line to the plan in force; the next one is made without it."""
        self.plan = replace(self.plan, notes=(*self.plan.notes, line), warnings=(*self.plan.warnings, line))

    def _count_in(self, more_bytes: int) -> None:
        """Plan with so much more that the driver takes."""
        self._driver_bytes += more_bytes
        fixed = self._request.fixed_vram_bytes
        fixed = {**fixed, DRIVER: fixed.get(DRIVER, 0) + more_bytes}
        self._request = replace(self._request, fixed_vram_bytes=fixed)

    def _driver_note(self) -> str:
        return f"the GPU's driver takes up to {format_bytes(self._driver_bytes)} more than it was asked for"

    def _plan_again(self, budget_bytes: int, what: str, now: str) -> str:
        """Gives `what` happened and what becomes of the run `now`; nothing while that is empty."""
        self._request = replace(self._request, budget_bytes=budget_bytes)
        plan = self._planner(self._request)
        if not any(placement.on_device for placement in plan.placements):
            self._request = replace(self._request, budget_bytes=0)
            plan = self._planner(self._request)
            now = "the run goes on without it"
        line = f"{what}: {now}" if now else ""
        self._lines += (line,) if line else ()
        counted = (self._driver_note(),) if self._driver_bytes and plan.budget_bytes else ()
        notes = (*plan.notes, *counted, *self._lines)
        self.plan = replace(plan, notes=notes, warnings=(*plan.warnings, *self._lines))
        self.peak_vram_bytes = max(self.peak_vram_bytes, plan.total_vram_bytes)
        return line


def _missing_bytes(failure: OutOfDeviceMemoryError) -> int:
    if failure.asked_bytes == 0:
        return _UNKNOWN_BYTES
    missing_bytes = failure.asked_bytes - (failure.limit_bytes - failure.used_bytes)
    # Free RAM says little of what may be pinned, and pinned blocks are small.
    return missing_bytes if missing_bytes > 0 and not failure.pinned else failure.asked_bytes


def _refused(failure: OutOfDeviceMemoryError) -> str:
    if failure.asked_bytes == 0:
        return "the GPU ran out of VRAM"
    asked = format_bytes(failure.asked_bytes)
    return f"the system refused {asked} of pinned RAM" if failure.pinned else f"the GPU refused {asked} of VRAM"


class RecoveringLinears:
    """A LinearRunner, replaced by one with a smaller plan as often as the device fails.

    `on_warning` is called with the line that says so, before the weights are loaded anew.
    """

    def __init__(
        self,
        replanner: Replanner,
        build: "Callable[[Plan], LinearRunner]",
        check_budget: Callable[[], None] = lambda: None,
    ) -> None:
        """Load. `build` loads the Linears of a plan, and leaves nothing allocated when it raises.

        `check_budget` raises OverBudgetError where more is in use than may be.
        """
        self.replanner = replanner
        self.on_warning: Callable[[str], None] = lambda line: None  # what is said now, the plan says as well
        self._build = build
        self._check_budget = check_budget
        self._runner: LinearRunner | None = None
        self._load()

    @property
    def plan(self) -> Plan:
        """The plan in force."""
        return self.replanner.plan

    def run(self, level: int, inputs: Mapping[str, FloatArray], outputs: Mapping[str, FloatArray]) -> None:
        """See `LinearRunner.run`."""
        while True:
            assert self._runner is not None
            try:
                self._runner.run(level, inputs, outputs)
                return
            except (OutOfDeviceMemoryError, DeviceLostError) as failure:
                self._shrink(failure)
            # Not in the handler: until its end, the frames of the error keep the old weights alive.
            self._load_anew()

    def keep_budget(self) -> None:
        """Plan again where a step has made the driver take more than it may: what it loads late is seen only then."""
        try:
            self._check()
            return
        except (OverBudgetError, DeviceLostError) as failure:
            self._shrink(failure)
        self._load_anew()

    def close(self) -> None:
        """Free everything on the device. Safe to call twice."""
        runner, self._runner = self._runner, None
        if runner is not None:
            # What is still in flight may be what fails; it is wanted no more.
            with suppress(OutOfDeviceMemoryError, DeviceLostError):
                runner.close()

    def _load_anew(self) -> None:
        self.close()
        gc.collect()
        self._load()

    def _load(self) -> None:
        while True:
            try:
                self._runner = self._build(self.plan)
                self._check()
                if self._runner.warning:
                    self.replanner.warn(self._runner.warning)
                return
            except (OutOfDeviceMemoryError, DeviceLostError) as failure:
                self._shrink(failure)
            except BaseException:
                self.close()
                raise
            self.close()
            gc.collect()  # an error that has passed an ExitStack keeps its frames, and what they hold, in a cycle

    def _check(self) -> None:
        if any(placement.on_device for placement in self.plan.placements):
            self._check_budget()

    def _shrink(self, failure: OutOfDeviceMemoryError | DeviceLostError) -> None:
        if line := self.replanner.shrink(failure):
            self.on_warning(line)
