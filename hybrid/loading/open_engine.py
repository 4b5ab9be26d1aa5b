"""Load a model as planned: settings -> `Engine`."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace

from hybrid.engine.attention import AttentionBinder
from hybrid.engine.engine import Engine
from hybrid.engine.engine_thread import engine_thread
from hybrid.engine.executor import Executor
from hybrid.engine.file_watch import FileWatch
from hybrid.engine.island import load_islands
from hybrid.engine.island_profiler import IslandProfiler
from hybrid.engine.kv_cache import GrowingCache, KvCache, SharedCache
from hybrid.engine.step_inputs import StepInputs
from hybrid.errors import EngineError, ModelFileError, OffloadError
from hybrid.graph.find import stored_weight
from hybrid.loading.device_opener import DeviceOpener
from hybrid.loading.planning import OpenedModel, open_for_run, plan_request, plan_within
from hybrid.loading.quantisation import HostQuantisation
from hybrid.loading.settings import RunSettings
from hybrid.loading.target import budget_asked, choose_target
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
from offload.plan.plan import LinearPlacement, Plan
from offload.plan.ram_tiers import file_bytes
from offload.run.recovery import RecoveringLinears, Replanner
from offload.run.runner import LinearRunner
from offload.spec.linear import Activations, WeightFormat
from offload.weights.host_columns import load_host_columns


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
    opener = DeviceOpener(opened, budget_asked(settings), lambda: progress.on_stage("Warming up the GPU", 0))
    target = choose_target(settings, opener.look)
    device = opener.open(target)
    try:
        warnings = (*target.warnings, *threads_warning(settings.threads), *_kernels_not_kept())
        target = replace(target, notes=(*target.notes, *_without_kernels(device)), warnings=warnings)
        ram = resolve_ram(settings.ram, read_ram(read_limits()))
        progress.on_stage("Planning", 0)
        request = plan_request(opened, target, _unsupported(device), ram)
        replanner = Replanner(request, plan_within)
        replanner.plan = with_ram_advice(request, replanner.plan)
        if device is not None and not any(placement.on_device for placement in replanner.plan.placements):
            device.close()
            device = None
        return load(opened, replanner, device, threads, progress, timeline, target.why, opener.vram)
    except BaseException as error:
        if device is not None:
            device.close()
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
    memory = MemoryWatch(vram)
    progress = _Watched(progress, memory)
    files = FileWatch.of(opened.decoder.graph)
    decoder = opened.decoder
    program, outside = opened.program, opened.outside
    attends = any(level.attentions for level in program.levels)
    weights = {linear.spec.name: stored_weight(decoder.graph, linear) for linear in outside}
    levels = [[linear.name for linear in level.linears] for level in program.levels]
    host = _HostKernels(attends, threads, progress)

    def load_linears(plan: Plan) -> LinearRunner:
        placements = [placement for placement in plan.placements if placement.linear.name in weights]
        quantised = HostQuantisation(placements)
        backend = host.compiled_for(placements, quantised)
        all_bytes = sum(placement.linear.weight_bytes for placement in placements)
        label = f"Loading weights (quantising to {opened.host_format})" if quantised.makes_any else "Loading weights"
        progress.on_stage(label, all_bytes - file_bytes(placements))
        # Where nobody knows how much RAM there is, its use is left to the system.
        ram_is_known = read_ram(read_limits()) is not None
        host_weights = load_host_columns(placements, weights, ram_is_known, progress.on_bytes)
        return LinearRunner(
            levels=levels,
            plan=plan,
            weights=weights,
            device=device,
            host=backend,
            timeline=timeline,
            on_bytes=progress.on_bytes,
            host_weights=host_weights,
        )

    with ExitStack() as undo:
        linears = RecoveringLinears(replanner, load_linears, vram.check if vram is not None else lambda: None)
        undo.callback(linears.close)
        if timeline is not None and device is not None:
            timeline.start(device)
        progress.on_stage("Preparing islands", 0)
        profiler = IslandProfiler() if timeline is not None and timeline.looks_inside else None
        islands = load_islands(program, threads, profiler, rounds=opened.activations is Activations.INT8)
        if timeline is not None and profiler is not None:
            timeline.look_inside(profiler)
        cache: KvCache = (
            SharedCache(decoder.graph, decoder.cache, opened.context_tokens)
            if decoder.shared_cache
            else GrowingCache(decoder.graph, decoder.cache)
        )
        inputs = StepInputs(decoder.graph, decoder.switches)
        attentions = (
            AttentionBinder(program, HostAttention(host.backend), cache.fixed) if attends and host.backend else None
        )
        executor = Executor(program, islands, linears, attentions, {**cache.fixed, **inputs.fixed}, timeline)
        monitor = GpuMonitor(vram) if vram is not None and device is not None else None
        if monitor is not None:
            monitor.start()
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


def _unsupported(device: Device | None) -> dict[str, str]:
    """The formats of weights that the device cannot multiply, with its reason."""
    if device is None:
        return {}
    return {str(name): reason for name in WeightFormat if (reason := device.supports(name))}


def _kernels_not_kept() -> tuple[str, ...]:
    """A warning where compiled kernels find no folder that is the user's own."""
    why = why_not_kept()
    return (f"CPU kernels are compiled anew in every run, since none are kept: {why}",) if why else ()


def _without_kernels(device: Device | None) -> tuple[str, ...]:
    """A note where the device multiplies only what has been rounded for it."""
    if device is None or device.input_format(WeightFormat.FP16) is WeightFormat.FP32:
        return ()
    why = device.supports(WeightFormat.INT8)
    return (f"activations are rounded to the weights' type before every multiply: {why}",)


def _check_has_weights(opened: OpenedModel) -> None:
    decoder = opened.decoder
    if not decoder.graph.has_weights:
        raise ModelFileError(
            f"{decoder.folder}: has a config but no .safetensors files; it can be planned with `hybrid plan`, not run"
        )


class _HostKernels:
    """The kernels of the host, made when a plan first has host columns, or at once where something attends."""

    def __init__(self, attends: bool, threads: int, progress: Progress) -> None:
        self.backend: NumbaBackend | None = None
        self._attends = attends
        self._threads = threads
        self._progress = progress

    def compiled_for(self, placements: Sequence[LinearPlacement], quantised: HostQuantisation) -> NumbaBackend | None:
        """The kernels with all that the host columns need compiled; None where they are not needed."""
        on_host = any(len(placement.host) for placement in placements)
        if not on_host and not self._attends and not quantised.makes_any:
            return None
        kinds = {(p.linear.format, p.linear.layout) for p in placements if len(p.host) and p.host_format.is_float}
        self._progress.on_stage("Compiling kernels (kept for the next run)", 0)
        if self.backend is None:
            self.backend = NumbaBackend(self._threads)
        self.backend.warm_up(sorted(kinds))
        quantised.warm_up(self.backend)
        return self.backend
