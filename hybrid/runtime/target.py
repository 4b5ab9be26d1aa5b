"""Where a run goes: which device, with which profile, and how much of its memory."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from hybrid.config import RunSettings
from hybrid.errors import DeviceUnavailableError, UsageError
from offload.budget import AUTO, Budget, ResolvedBudget, parse_budget, resolve_budget
from offload.device_profile import DeviceProfile, GpuRates, load_profile
from offload.units import format_bytes

_PACKAGED = Path(__file__).parents[1] / "configs" / "machines"  # in a wheel
_CHECKOUT = Path(__file__).parents[2] / "configs" / "machines"  # in a checkout
_CPU_PROFILE, _GPU_PROFILE, _SIMULATED_PROFILE = "generic-cpu", "generic-gpu", "toy"


@dataclass(frozen=True)
class GpuFacts:
    """What has to be known of a GPU before a plan can be made for it."""

    name: str
    free_bytes: int
    total_bytes: int
    fixed_bytes: dict[str, int]  # what the process takes before the first weight, by name


@dataclass(frozen=True)
class Target:
    """The decision. `device` is "cpu", "cuda" or "simulated"; `why` is one clause for the status line."""

    device: str
    ordinal: int
    profile: DeviceProfile
    budget: ResolvedBudget
    fixed_bytes: dict[str, int]
    why: str


def choose_target(settings: RunSettings, look_at_gpu: Callable[[int, DeviceProfile], GpuFacts]) -> Target:
    """Decide where to run. `look_at_gpu` answers for a CUDA ordinal or raises DeviceUnavailableError.

    Without `--cuda`, a GPU that cannot be used means the CPU, and `why` says so. With it, the error stands:
    what was asked for is never silently run elsewhere.
    """
    device, ordinal = _parse_device(settings.device)
    budget = AUTO if settings.cuda is None else parse_budget(settings.cuda)
    if device == "cpu" and settings.cuda is not None and not budget.is_zero:
        raise UsageError(f"--device cpu and --cuda {settings.cuda} contradict each other; drop one of them")
    if device == "cpu" or budget.is_zero:
        return _on_cpu(settings, "as asked")
    if device == "simulated":
        return _simulated(settings, budget)
    try:
        return _on_gpu(settings, budget, ordinal, look_at_gpu)
    except DeviceUnavailableError as error:
        if settings.cuda is None and device == "auto":
            return _on_cpu(settings, f"no usable GPU: {error}")
        asked = f"--cuda {settings.cuda}" if settings.cuda is not None else f"--device {settings.device}"
        raise DeviceUnavailableError(
            f"{asked}: {error}; use --cuda 0 for the CPU, --device simulated to try the machinery, "
            "or plan for another machine with --machine"
        ) from None


def look_in_profile(_: int, profile: DeviceProfile) -> GpuFacts:
    """The GPU that a machine profile describes; nothing is touched."""
    gpu = _gpu_of(profile)
    return GpuFacts(gpu.name, gpu.vram_bytes, gpu.vram_bytes, _estimated_fixed_bytes(gpu))


def look_through_driver(ordinal: int, profile: DeviceProfile) -> GpuFacts:
    """The GPU as the driver reports it, without starting CUDA; what a context takes is the profile's estimate."""
    from offload.devices import nvml

    gpu = nvml.gpu(ordinal)  # the driver's order; CUDA may number its visible devices otherwise
    return GpuFacts(gpu.name, gpu.free_bytes, gpu.total_bytes, _estimated_fixed_bytes(_gpu_of(profile)))


def find_profile(name: str) -> DeviceProfile:
    """A profile by name, or by path when `name` ends in .json. Raises UsageError, naming those there are."""
    if name.endswith(".json"):
        return load_profile(Path(name))
    folder = _PACKAGED if _PACKAGED.is_dir() else _CHECKOUT
    names = sorted(path.stem for path in folder.glob("*.json"))
    if name not in names:
        raise UsageError(f"--machine {name}: not a profile file (.json) and none of {', '.join(names)}")
    return load_profile(folder / f"{name}.json")


def _parse_device(text: str) -> tuple[str, int]:
    name, _, number = text.partition(":")
    if name == "cuda" and number.isdecimal():
        return name, int(number)
    if text in ("auto", "cpu", "cuda", "simulated"):
        return text, 0
    raise UsageError(f"--device {text}: must be auto, cpu, cuda, cuda:N or simulated")


def _on_cpu(settings: RunSettings, why: str) -> Target:
    profile = find_profile(settings.machine or _CPU_PROFILE)
    return Target("cpu", 0, profile, ResolvedBudget(0), {}, why)


def _simulated(settings: RunSettings, budget: Budget) -> Target:
    profile = find_profile(settings.machine or _SIMULATED_PROFILE)
    facts = look_in_profile(0, profile)
    resolved = resolve_budget(budget, facts.free_bytes, facts.total_bytes)
    why = f"simulated {facts.name}, its times are modelled"
    return Target("simulated", 0, profile, resolved, facts.fixed_bytes, why)


def _on_gpu(
    settings: RunSettings, budget: Budget, ordinal: int, look_at_gpu: Callable[[int, DeviceProfile], GpuFacts]
) -> Target:
    profile = find_profile(settings.machine or _GPU_PROFILE)
    facts = look_at_gpu(ordinal, profile)
    if settings.machine is None:
        gpu = replace(_gpu_of(profile), name=facts.name, vram_bytes=facts.total_bytes)
        profile = replace(profile, gpu=gpu)
    resolved = resolve_budget(budget, facts.free_bytes, facts.total_bytes)
    why = f"{facts.name}, {format_bytes(facts.free_bytes)} of {format_bytes(facts.total_bytes)} free"
    return Target("cuda", ordinal, profile, resolved, facts.fixed_bytes, why)


def _gpu_of(profile: DeviceProfile) -> GpuRates:
    if profile.gpu is None:
        raise UsageError(f"--machine {profile.name}: this profile has no GPU; use --cuda 0 with it")
    return profile.gpu


def _estimated_fixed_bytes(gpu: GpuRates) -> dict[str, int]:
    return {"context": gpu.context_bytes, "workspace": gpu.workspace_bytes}
