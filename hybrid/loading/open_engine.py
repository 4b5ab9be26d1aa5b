"""Load a model as planned: settings -> `Engine`."""

from contextlib import ExitStack
from dataclasses import replace

from hybrid.engine.attention import AttentionBinder
from hybrid.engine.engine import Engine
from hybrid.engine.engine_thread import engine_thread
from hybrid.engine.executor import Executor
from hybrid.engine.file_watch import FileWatch
from hybrid.engine.island import LoadedIsland, load_islands
from hybrid.engine.island_profiler import IslandProfiler
from hybrid.engine.kv_cache import GrowingCache, KvCache, SharedCache
from hybrid.engine.step_inputs import StepInputs
from hybrid.errors import EngineError, ModelFileError, OffloadError
from hybrid.loading.linear_loader import LinearLoader
from hybrid.loading.opened_device import OpenedDevice, open_device
from hybrid.loading.opened_model import OpenedModel, open_for_run
from hybrid.loading.planning import plan_request, plan_within
from hybrid.loading.settings import RunSettings
from hybrid.loading.target import Target
from hybrid.machine.cgroups import read_limits
from hybrid.machine.memory import MemoryWatch
from hybrid.machine.ram import read_ram, resolve_ram
from hybrid.machine.threads import resolve_threads, threads_warning
from hybrid.progress import Progress
from offload.devices.base import Device
from offload.devices.cuda.vram_meter import VramMeter
from offload.host.attention import HostAttention
from offload.host.backend import NumbaBackend
from offload.host.kernels.cache import why_not_kept
from offload.observe.gpu_monitor import GpuMonitor
from offload.observe.timeline import Timeline
from offload.plan.advice import with_ram_advice
from offload.run.recovery import RecoveringLinears, Replanner
from offload.spec.linear import Activations


def open_engine(settings: RunSettings, progress: Progress | None = None, timeline: Timeline | None = None) -> Engine:
    """Open, plan and load the model of `settings`.

    All of it is done on the engine's thread. Raises OffloadError, of which every error of this package is one, for
    anything a user can put right.
    """
    return engine_thread().run(lambda: _open_engine(settings, progress or Progress(), timeline))


def _open_engine(settings: RunSettings, progress: Progress, timeline: Timeline | None) -> Engine:
    threads = resolve_threads(settings.threads)
    progress.on_stage("Opening the model", 0)
    opened = open_for_run(settings)
    _check_has_weights(opened)
    found = open_device(settings, opened, progress)
    try:
        progress.on_stage("Planning", 0)
        ram = resolve_ram(settings.ram_budget, read_ram(read_limits()))
        request = plan_request(opened, _with_notes(found, settings), found.unsupported, ram)
        plan = with_ram_advice(request, plan_within(request))
        if not any(placement.on_device for placement in plan.placements):
            found = found.unused()
        replanner = Replanner(request, plan_within, plan)
        return load(opened, replanner, found.device, threads, progress, timeline, found.target.why, found.vram)
    except BaseException as error:
        found.close()
        if isinstance(error, MemoryError) and not isinstance(error, OffloadError):
            raise EngineError(
                f"{opened.decoder.name}: RAM does not suffice: {error}; try a smaller --context"
            ) from None
        raise


def load(
    opened: OpenedModel,
    replanner: Replanner,
    device: Device | None,
    threads: int,
    progress: Progress | None = None,
    timeline: Timeline | None = None,
    target: str = "",
    vram: VramMeter | None = None,
) -> Engine:
    """Load `opened` as planned, on the engine's thread.

    `vram` measures a CUDA device, also one that was opened and is not used: its context stays.
    """
    return engine_thread().run(
        lambda: _load(opened, replanner, device, threads, progress or Progress(), timeline, target, vram)
    )


def _load(
    opened: OpenedModel,
    replanner: Replanner,
    device: Device | None,
    threads: int,
    progress: Progress,
    timeline: Timeline | None,
    target: str,
    vram: VramMeter | None,
) -> Engine:
    decoder = opened.decoder
    memory = MemoryWatch(vram)
    progress = _Watched(progress, memory)
    files = FileWatch.of(decoder.graph)
    loader = LinearLoader(opened, device, threads, progress, timeline)
    with ExitStack() as undo:
        linears = RecoveringLinears(replanner, loader.load, vram.check if vram is not None else lambda: None)
        undo.callback(linears.close)
        if timeline is not None and device is not None:
            timeline.start(device)
        progress.on_stage("Preparing islands", 0)
        islands = _islands(opened, threads, timeline)
        cache = _cache(opened)
        inputs = StepInputs(decoder.graph, decoder.switches)
        attentions = _attentions(opened, loader.kernels, cache)
        executor = Executor(opened.program, islands, linears, attentions, {**cache.fixed, **inputs.fixed}, timeline)
        monitor = _started_monitor(device, vram)
        files.check()
        engine = Engine(
            decoder,
            opened.context_tokens,
            executor,
            cache,
            inputs,
            linears,
            device,
            target,
            memory,
            files,
            timeline,
            monitor,
        )
        if decoder.is_merged and decoder.most_new_tokens != 1:
            engine.check_several_tokens()
        undo.pop_all()
    return engine


def _islands(opened: OpenedModel, threads: int, timeline: Timeline | None) -> list[LoadedIsland | None]:
    """The islands of all levels, profiled where the timeline looks inside."""
    profiler = IslandProfiler() if timeline is not None and timeline.looks_inside else None
    islands = load_islands(opened.program, threads, profiler, rounds=opened.activations is Activations.INT8)
    if timeline is not None and profiler is not None:
        timeline.look_inside(profiler)
    return islands


def _cache(opened: OpenedModel) -> KvCache:
    decoder = opened.decoder
    if decoder.shared_cache:
        return SharedCache(decoder.graph, decoder.cache, opened.context_tokens)
    return GrowingCache(decoder.graph, decoder.cache)


def _attentions(opened: OpenedModel, kernels: NumbaBackend | None, cache: KvCache) -> AttentionBinder | None:
    if not opened.attentions or kernels is None:
        return None
    return AttentionBinder(opened.program, HostAttention(kernels), cache.fixed)


def _started_monitor(device: Device | None, vram: VramMeter | None) -> GpuMonitor | None:
    if device is None or vram is None:
        return None
    monitor = GpuMonitor(vram)
    monitor.start()
    return monitor


class _Watched(Progress):
    """Also takes note of the memory in use, and ends a load that nobody waits for."""

    def __init__(self, progress: Progress, memory: MemoryWatch) -> None:
        self._progress = progress
        self._memory = memory
        self._check = engine_thread().check

    def on_stage(self, label: str, total_bytes: int) -> None:
        self._check()
        self._memory.sample()
        self._progress.on_stage(label, total_bytes)

    def on_bytes(self, nbytes: int) -> None:
        self._check()
        self._memory.sample()
        self._progress.on_bytes(nbytes)


def _with_notes(found: OpenedDevice, settings: RunSettings) -> Target:
    """The target, with what this run has to say besides."""
    why = why_not_kept()
    not_kept = (f"CPU kernels are compiled anew in every run, since none are kept: {why}",) if why else ()
    target = found.target
    warnings = (*target.warnings, *threads_warning(settings.threads), *not_kept)
    return replace(target, notes=(*target.notes, *found.notes), warnings=warnings)


def _check_has_weights(opened: OpenedModel) -> None:
    decoder = opened.decoder
    if not decoder.graph.has_weights:
        raise ModelFileError(
            f"{decoder.folder}: has a config but no .safetensors files; it can be planned with `hybrid plan`, not run"
        )
