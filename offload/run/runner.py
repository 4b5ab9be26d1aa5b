"""y = x @ W for every Linear group of a program, each column where its plan put it."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np

from offload.devices.base import Device
from offload.errors import DeviceUnavailableError
from offload.host.base import HostBackend, HostColumns, HostGroup
from offload.observe.timeline import Operator, Timeline, span
from offload.plan.plan import HostTier, LinearPlacement, Plan
from offload.run.device_work import DeviceStep, DeviceWork, GroupWork
from offload.run.file_tier import FileTier
from offload.spec.arrays import FloatArray
from offload.storage.stored_weight import StoredWeight
from offload.weights.host_columns import host_columns

_TRACK = "linears"


@dataclass(frozen=True)
class _HostWork:
    """The host columns of one Linear group. `kinds` names the kinds of Linears, for the timeline."""

    group: str
    kinds: str
    linears: tuple[str, ...]
    work: HostGroup


@dataclass(frozen=True)
class _LevelWork:
    """The work of one level; a group may be in both. `kinds` names the kinds on the device, for the timeline."""

    kinds: str
    device: tuple[GroupWork, ...]
    host: tuple[_HostWork, ...]


@dataclass(frozen=True)
class _HostSide:
    """The host columns of Linears as they are kept, by name, and their backend."""

    weights: Mapping[str, StoredWeight]
    backend: HostBackend | None

    def reads_ahead(self, placement: LinearPlacement) -> bool:
        """Tell whether its host columns are read at every step; those in no file stay where they lie."""
        if placement.tier is not HostTier.FILE or not len(placement.host):
            return False
        return self.weights[placement.linear.name].in_file

    @property
    def given_backend(self) -> HostBackend:
        """The backend. Raises ValueError when there is none."""
        if self.backend is None:
            raise ValueError("the plan leaves columns to the host, and no host backend was given")
        return self.backend


class LinearRunner:
    """Runs every Linear group of a program under its plan."""

    def __init__(
        self,
        levels: Sequence[Sequence[str]],
        plan: Plan,
        weights: Mapping[str, StoredWeight],
        device: Device | None,
        host: HostBackend | None,
        timeline: Timeline | None = None,
        on_bytes: Callable[[int], None] | None = None,
        host_weights: Mapping[str, StoredWeight] | None = None,
    ) -> None:
        """Allocate everything and load the device columns.

        `levels` has the names of the Linears that run at each level, in order; `weights` the whole weights;
        `host_weights` the host columns as they are kept, where that is not as in `weights`; those of tier FILE are
        read ahead where they lie in files. `device` and `host` may be None where the plan has nothing for them.
        `on_bytes` is called with the bytes of every part that was loaded.
        Raises OutOfDeviceMemoryError and DeviceUnavailableError, with nothing left allocated, and ValueError
        for levels and weights that do not fit the plan.
        """
        self._chunk_tokens = plan.chunk_tokens
        self._prefill_tokens = 0  # as in the plan, where prefill differs from decode
        self.warning = ""  # one line, where not everything of the plan can be done
        self._timeline = timeline
        self._steps: dict[tuple[int, int], DeviceStep] = {}  # for `_tokens` tokens, by level and batch
        self._tokens = 0
        grouped = _by_group(levels, plan)
        placements = [placement for level in grouped for group in level.values() for placement in group]
        with ExitStack() as stack:
            self._work: DeviceWork | None = None
            if host_weights is None:
                host_weights = host_columns(placements, weights)
            if any(placement.on_device for placement in placements):
                self._work = DeviceWork(_usable(device, placements), plan, placements, host_weights, stack)
                self._prefill_tokens = plan.prefill_tokens if self._work.has_prefill else 0
                self.warning = self._work.warning
            host_side = _HostSide(host_weights, host)
            in_files = _file_works(grouped, host_side, plan.read_ahead_bytes, stack)
            self._levels = self._prefill_levels = _levels(grouped, self._work, host_side, in_files, prefill=False)
            if self._prefill_tokens:
                self._prefill_levels = _levels(grouped, self._work, host_side, in_files, prefill=True)
            if self._work is not None:
                self._work.load(weights, on_bytes)
            self._resources = stack.pop_all()

    def run(self, level: int, inputs: Mapping[str, FloatArray], outputs: Mapping[str, FloatArray]) -> None:
        """Multiply the Linears of one level.

        `inputs`: group name -> x float32 [M, K]; `outputs`: Linear name -> y float32 [M, N], wholly
        overwritten; all C-contiguous, M equal for all and from 1 to the plan's `chunk_tokens`.
        """
        prefill = self._prefill_tokens and any(len(x) >= self._prefill_tokens for x in inputs.values())
        work = (self._prefill_levels if prefill else self._levels)[level]
        if work.device:
            self._run_with_device(level, work, inputs, outputs)
        else:
            self._multiply_on_host(work, inputs, outputs)

    def close(self) -> None:
        """Free everything on the device and stop reading ahead. Safe to call twice."""
        self._resources.close()

    def _run_with_device(
        self, level: int, work: _LevelWork, inputs: Mapping[str, FloatArray], outputs: Mapping[str, FloatArray]
    ) -> None:
        assert self._work is not None
        tokens = inputs[work.device[0].name].shape[0]  # M, of x [M, K]
        if not 1 <= tokens <= self._chunk_tokens:
            raise ValueError(f"a step has 1 to {self._chunk_tokens} tokens, not {tokens}")
        if tokens != self._tokens:
            self._steps.clear()
            self._tokens = tokens
        for number, batch in enumerate(self._work.batches(work.device, tokens)):
            step = self._steps.get((level, number))
            if step is None:
                step = self._steps[level, number] = self._work.bind(batch, tokens)
            try:
                if self._timeline is not None:
                    self._timeline.align()
                with span(self._timeline, _TRACK, f"queue level {level}", Operator.QUEUE, work.kinds):
                    scales = self._work.queue(step, inputs)  # [M, 1] by cast
                if number == 0:
                    self._multiply_on_host(work, inputs, outputs)
            finally:
                # Whatever happened, the pinned buffers are the host's again only after this.
                with span(self._timeline, _TRACK, "wait for the device", Operator.WAIT, work.kinds):
                    self._work.compute.synchronize()
            with span(self._timeline, _TRACK, "collect outputs", Operator.COLLECT, work.kinds):
                for cast, name, columns, values in step.results:  # values: pinned [M, n]
                    part = outputs[name][:, columns.start : columns.stop]  # [M, n] of y [M, N]
                    np.multiply(values, scales.get(cast, 1), out=part)  # scales [M, 1], where x was divided by them

    def _multiply_on_host(
        self, level: _LevelWork, inputs: Mapping[str, FloatArray], outputs: Mapping[str, FloatArray]
    ) -> None:
        for host in level.host:
            name = f"host columns of {host.group}"
            with span(self._timeline, _TRACK, name, Operator.HOST_COLUMNS, host.kinds):
                host.work.multiply(inputs[host.group], [outputs[name] for name in host.linears])


def _by_group(levels: Sequence[Sequence[str]], plan: Plan) -> list[dict[str, list[LinearPlacement]]]:
    """The placements of every level, by group. Raises ValueError when levels and plan do not match."""
    left = {placement.linear.name: placement for placement in plan.placements}
    seen: set[str] = set()
    grouped = []
    for level in levels:
        groups: dict[str, list[LinearPlacement]] = {}
        for name in level:
            if name not in left:
                raise ValueError(f"{name} is not in the plan, or runs twice")
            placement = left.pop(name)
            groups.setdefault(placement.linear.group, []).append(placement)
        if seen & groups.keys():
            raise ValueError(f"groups {sorted(seen & groups.keys())} run at more than one level")
        seen |= groups.keys()
        grouped.append(groups)
    for placement in left.values():
        if placement.on_device:
            raise ValueError(f"{placement.linear.name} has device columns, and no level runs it")
    return grouped


def _kinds(placements: Sequence[LinearPlacement]) -> str:
    return ", ".join(dict.fromkeys(placement.linear.kind for placement in placements))


def _usable(device: Device | None, placements: Sequence[LinearPlacement]) -> Device:
    """`device`, if it can do what the placements ask of it."""
    if device is None:
        raise ValueError("the plan places columns on a device, and none was given")
    for placement in placements:
        formats = [placement.linear.format] if len(placement.resident) else []
        formats += [placement.host_format] if len(placement.streamed_in(prefill=True)) else []
        for reason in map(device.supports, formats):
            if reason:
                raise DeviceUnavailableError(f"{placement.linear.name}: {reason}")
    return device


def _levels(
    grouped: Sequence[Mapping[str, Sequence[LinearPlacement]]],
    work: DeviceWork | None,
    host_side: _HostSide,
    in_files: Mapping[str, _HostWork],
    prefill: bool,
) -> list[_LevelWork]:
    """The work of every level in prefill or decode; `in_files` is by group, and the same in both."""
    on_device = work.groups(prefill) if work is not None else {}
    levels = []
    for level in grouped:
        on_host: list[_HostWork] = []
        for group, members in level.items():
            in_ram = [p for p in members if len(p.host_in(prefill)) and not host_side.reads_ahead(p)]
            if in_ram:
                on_host.append(_host_work(group, in_ram, host_side, prefill))
            if group in in_files:
                on_host.append(in_files[group])
        levels.append(
            _LevelWork(
                kinds=_kinds([p for members in level.values() for p in members if p.on_device]),
                device=tuple(on_device[group] for group in level if group in on_device),
                host=tuple(on_host),
            )
        )
    return levels


def _file_works(
    grouped: Sequence[Mapping[str, Sequence[LinearPlacement]]],
    host_side: _HostSide,
    read_ahead_bytes: int,
    stack: ExitStack,
) -> dict[str, _HostWork]:
    """The host columns that are read ahead, by group; begins to read, and `stack` gets what ends it."""
    groups = {
        group: read_ahead
        for level in grouped
        for group, members in level.items()
        if (read_ahead := [placement for placement in members if host_side.reads_ahead(placement)])
    }
    if not groups:
        return {}
    files = FileTier(groups, host_side.weights, host_side.given_backend, read_ahead_bytes)
    stack.callback(files.close)
    files.start()
    return {
        group: _HostWork(group, _kinds(members), tuple(p.linear.name for p in members), files.groups[group])
        for group, members in groups.items()
    }


def _host_work(
    group: str,
    placements: Sequence[LinearPlacement],
    host_side: _HostSide,
    prefill: bool,
) -> _HostWork:
    columns = []
    for placement in placements:
        linear, first, here = placement.linear, placement.host.start, placement.host_in(prefill)
        weight = host_side.weights[linear.name].columns(here.start - first, here.stop - first)
        columns.append(HostColumns(weight, here.start, linear.out_features, linear.activations))
    linears = tuple(placement.linear.name for placement in placements)
    return _HostWork(group, _kinds(placements), linears, host_side.given_backend.group(columns))
