"""Device profiles by name: those that come with the package, and those that were measured on this machine."""

import json
import os
import platform
import re
from dataclasses import dataclass
from pathlib import Path

from hybrid.errors import UsageError
from hybrid.machine.user_folders import config_folder
from hybrid.shown import show
from offload.errors import ProfileError
from offload.machine.profile import DeviceProfile, load_profile
from offload.spec.units import counted

CALIBRATE = "hybrid tune --calibrate"
_PACKAGED = Path(__file__).parents[1] / "configs" / "machines"  # in a wheel
_CHECKOUT = Path(__file__).parents[2] / "configs" / "machines"  # in a checkout
_NOT_IN_NAMES = re.compile(r"[^\w.-]+", re.ASCII)


@dataclass(frozen=True)
class Calibration:
    """The rates measured on this machine, if they can be used for a run; else `why_not`, which is one clause.

    `broken` is True when there is a file that cannot be read: that is worth a word in any run.
    """

    profile: DeviceProfile | None
    why_not: str = ""
    broken: bool = False


def machine_name() -> str:
    """The name of this machine, as a file may have it."""
    return _NOT_IN_NAMES.sub("-", platform.node()).strip(".-") or "this-machine"


def calibration_file(name: str) -> Path:
    """Locate the profile that was measured on the machine `name`."""
    return config_folder() / "machines" / f"{name}.json"


def find_profile(name: str) -> DeviceProfile:
    """A profile by name, measured ones first, or by path when `name` ends in .json.

    Raises UsageError, naming those there are, and ProfileError for a file that is none.
    """
    if name.endswith(".json"):
        return load_profile(Path(name))
    folder = _PACKAGED if _PACKAGED.is_dir() else _CHECKOUT
    files = {path.stem: path for where in (folder, calibration_file("").parent) for path in where.glob("*.json")}
    if name not in files:
        raise UsageError(f"--machine {name}: not a profile file (.json) and none of {', '.join(sorted(files))}")
    return load_profile(files[name])


def busy_warning(profile: DeviceProfile) -> tuple[str, ...]:
    """A line for rates that were measured beside other programs, until they are measured again."""
    if not profile.busy_cpus:
        return ()
    return (
        f"{profile.name} was measured while other programs kept {profile.busy_cpus:.1f} CPUs busy, so its rates are "
        f"too low; {CALIBRATE} measures them again",
    )


def save_profile(profile: DeviceProfile, path: Path) -> None:
    """Write a profile; `path` is replaced when all is written. Raises UsageError when it cannot be."""
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            unfinished.write_text(json.dumps(profile.to_json(), indent=2) + "\n", encoding="utf-8")
            unfinished.replace(path)
        finally:
            unfinished.unlink(missing_ok=True)
    except OSError as error:
        raise UsageError(f"{show(path)}: the profile cannot be written there: {error.strerror}") from None


def calibration(threads: int, gpu_name: str | None = None) -> Calibration:
    """Find the rates measured here with as many threads and, if there is a `gpu_name`, with that GPU."""
    path = calibration_file(machine_name())
    if not path.exists():
        return Calibration(None, f"{CALIBRATE} measures it")
    try:
        profile = load_profile(path)
    except ProfileError as error:
        return Calibration(None, f"{error}; not used, {CALIBRATE} writes a new one", broken=True)
    measured_gpu = profile.gpu.name if profile.gpu is not None else "no GPU"
    if profile.estimated:
        why_not = "holds estimates"
    elif profile.cpu.threads != threads:
        why_not = f"was measured with {counted(profile.cpu.threads, 'thread')}, this run has {threads}"
    elif gpu_name is not None and measured_gpu != gpu_name:
        why_not = f"was measured with {measured_gpu}, this run has {gpu_name}"
    else:
        return Calibration(profile)
    return Calibration(None, f"{show(path)} {why_not}")
