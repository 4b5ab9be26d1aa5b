"""Chooses the target of a run: which device, with which profile, and how much of its memory."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from hybrid.errors import DeviceUnavailableError, UsageError
from hybrid.loading.settings import RunSettings
from hybrid.machine.profiles import Calibration, busy_warning, calibration, find_profile
from hybrid.machine.threads import resolve_threads
from offload.machine.budget import AUTO, ResolvedBudget, resolve_budget
from offload.machine.profile import DeviceProfile, GpuRates
from offload.spec.units import format_bytes

CPU_PROFILE, GPU_PROFILE, SIMULATED_PROFILE = "generic-cpu", "generic-gpu", "toy"


@dataclass(frozen=True)
class GpuFacts:
    """The facts of a GPU that a plan is made from."""

    name: str
    free_bytes: int
    total_bytes: int
    fixed_bytes: dict[str, int]  # what the process takes before the first weight, by name; empty: not known yet


@dataclass(frozen=True)
class Target:
    """The decision. `device` is "cpu", "cuda" or "simulated"; `why` is one clause for the status line.

    `notes` and `warnings` are about the rates of the profile.
    """

    device: str
    ordinal: int
    profile: DeviceProfile
    budget: ResolvedBudget
    fixed_bytes: dict[str, int]
    why: str
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class WantedDevice:
    """The device that `--device`, `--cuda` and `--machine` come to, before anybody has looked for it.

    `kind` is "cpu", "cuda" or "simulated"; `why` is one clause about the CPU. `asked` is the flag that asks for a GPU,
    "" where one is used only if there is one.
    """

    kind: str
    ordinal: int = 0
    why: str = ""
    asked: str = ""

    def without_gpu(self, error: DeviceUnavailableError) -> "WantedDevice":
        """What is used where the GPU cannot be: the CPU. Raises DeviceUnavailableError where a GPU was asked for."""
        if not self.asked:
            return WantedDevice("cpu", why=f"no usable GPU: {error}")
        raise DeviceUnavailableError(
            f"{self.asked}: {error}; use --cuda 0 for the CPU, --device simulated to try the machinery, "
            "or hybrid plan --machine NAME to plan for another machine"
        ) from None


def wanted_device(settings: RunSettings) -> WantedDevice:
    """Read `--device`, `--cuda` and `--machine`. Raises UsageError for what they cannot be, and cannot be together."""
    device, ordinal = _parse_device(settings.device)
    budget = settings.vram_budget
    if device == "cpu" and settings.cuda is not None and not budget.is_zero:
        raise UsageError(f"--device cpu and --cuda {settings.cuda} contradict each other; drop one of them")
    profile = find_profile(settings.machine) if settings.machine is not None else None
    if device == "cpu" or budget.is_zero:
        return WantedDevice("cpu", why="as asked")
    if profile is not None and profile.gpu is None:
        if device == "auto" and budget == AUTO:
            return WantedDevice("cpu", why=f"{settings.machine} has no GPU")
        _gpu_of(profile)
    if device == "simulated":
        return WantedDevice("simulated")
    asked = f"--cuda {settings.cuda}" if settings.cuda is not None else ""
    return WantedDevice("cuda", ordinal, asked=asked or (f"--device {settings.device}" if device == "cuda" else ""))


def choose_target(settings: RunSettings, look_at_gpu: Callable[[int, DeviceProfile], GpuFacts]) -> Target:
    """Decide where a plan is for. `look_at_gpu` reads the facts of a CUDA ordinal or raises DeviceUnavailableError.

    Without `--cuda`, a GPU that cannot be used means the CPU, and `why` says so. With it, the error stands:
    what was asked for is never silently run elsewhere.
    """
    wanted = wanted_device(settings)
    if wanted.kind == "cuda":
        try:
            facts = look_at_gpu(wanted.ordinal, find_profile(settings.machine or GPU_PROFILE))
        except DeviceUnavailableError as error:
            wanted = wanted.without_gpu(error)
        else:
            budget = resolve_budget(settings.vram_budget, facts.free_bytes, facts.total_bytes)
            return target_on_gpu(settings, wanted, facts, budget)
    return target_without_gpu(settings, wanted)


def target_on_gpu(settings: RunSettings, wanted: WantedDevice, facts: GpuFacts, budget: ResolvedBudget) -> Target:
    """The target that a GPU with these facts is."""
    profile = find_profile(settings.machine or GPU_PROFILE)
    found = _measured(settings, facts.name)
    profile = found.profile or profile
    gpu = _gpu_of(profile)
    if settings.machine is None:
        profile = replace(profile, gpu=replace(gpu, name=facts.name, vram_bytes=facts.total_bytes))
    why = f"{facts.name}, {format_bytes(facts.free_bytes)} of {format_bytes(facts.total_bytes)} free"
    fixed_bytes = facts.fixed_bytes or _estimated_fixed_bytes(gpu)
    return Target("cuda", wanted.ordinal, profile, budget, fixed_bytes, why, *_said_of(profile, found))


def target_without_gpu(settings: RunSettings, wanted: WantedDevice) -> Target:
    """The target that the CPU is, alone or with a simulated device."""
    if wanted.kind == "simulated":
        profile = find_profile(settings.machine or SIMULATED_PROFILE)
        facts = look_in_profile(0, profile)
        budget = resolve_budget(settings.vram_budget, facts.free_bytes, facts.total_bytes)
        why = f"simulated {facts.name}, its times are modelled"
        said = _said_of(profile, Calibration(None))
        return Target("simulated", 0, profile, budget, facts.fixed_bytes, why, *said)
    found = _measured(settings)
    profile = found.profile or find_profile(settings.machine or CPU_PROFILE)
    return Target("cpu", 0, profile, ResolvedBudget(0), {}, wanted.why, *_said_of(profile, found))


def look_in_profile(_: int, profile: DeviceProfile) -> GpuFacts:
    """The GPU that a machine profile describes; nothing is touched."""
    gpu = _gpu_of(profile)
    return GpuFacts(gpu.name, gpu.vram_bytes, gpu.vram_bytes, _estimated_fixed_bytes(gpu))


def look_through_driver(ordinal: int, _: DeviceProfile) -> GpuFacts:
    """The GPU as the driver reports it, without a context, so that what one takes is not known."""
    from offload.devices.cuda import nvml
    from offload.devices.cuda.ordinals import pci_bus_id

    gpu = nvml.gpu(ordinal, pci_bus_id(ordinal))
    return GpuFacts(gpu.name, gpu.free_bytes, gpu.total_bytes, {})


def _parse_device(text: str) -> tuple[str, int]:
    name, _, number = text.partition(":")
    if name == "cuda" and number.isdecimal():
        return name, int(number)
    if text in ("auto", "cpu", "cuda", "simulated"):
        return text, 0
    raise UsageError(f"--device {text}: must be auto, cpu, cuda, cuda:N or simulated")


def _measured(settings: RunSettings, gpu_name: str | None = None) -> Calibration:
    """Load what was measured on this machine; a machine that is named takes its place."""
    if settings.machine is not None:
        return Calibration(None)
    return calibration(resolve_threads(settings.threads), gpu_name)


def _said_of(profile: DeviceProfile, found: Calibration) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Notes and warnings about the rates of a profile."""
    if found.broken:
        return (), (f"{profile.name}: the rates are estimates; {found.why_not}",)
    if not profile.estimated:
        return (), busy_warning(profile)
    why_not = f"; {found.why_not}" if found.why_not else ""
    return (f"{profile.name}: the rates are estimates, not measured on this machine{why_not}",), ()


def _gpu_of(profile: DeviceProfile) -> GpuRates:
    if profile.gpu is None:
        raise UsageError(f"--machine {profile.name}: this profile has no GPU; use --cuda 0 with it")
    return profile.gpu


def _estimated_fixed_bytes(gpu: GpuRates) -> dict[str, int]:
    return {"context": gpu.context_bytes, "workspace": gpu.workspace_bytes}
