"""The device profile: the rates and sizes of one machine that the cost model computes with. Plain data, JSON."""

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

from offload.errors import ProfileError

_ABSURD = 1e30  # no machine has a rate or a size like that
_Rates = TypeVar("_Rates", "CpuRates", "GpuRates")


@dataclass(frozen=True)
class CpuRates:
    """Host side: RAM and what one step pays apart from reading weights."""

    ram_bytes: int
    weight_bytes_per_s: float  # reading weights during a multiply, all threads
    attention_bytes_per_s: float  # reading the KV cache during attention
    island_s: float  # one island of a decode step, without attention
    launch_s: float  # one host kernel


@dataclass(frozen=True)
class GpuRates:
    """Device side: VRAM, the bus, and fixed costs."""

    name: str
    vram_bytes: int
    vram_bytes_per_s: float
    bus_bytes_per_s: float  # host to device, pinned
    round_trip_s: float  # activations there and back, with one wait
    launch_s: float  # one GEMM
    context_bytes: int
    workspace_bytes: int


@dataclass(frozen=True)
class DeviceProfile:
    """One machine. `estimated` is True until its rates have been measured on it."""

    name: str
    estimated: bool
    cpu: CpuRates
    gpu: GpuRates | None

    def to_json(self) -> dict[str, Any]:
        """The profile as plain JSON values."""
        return asdict(self)


def load_profile(path: Path) -> DeviceProfile:
    """Read a profile. Raises ProfileError, naming file, key and value, for what is missing, unknown or no rate."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ProfileError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise ProfileError(f"{path}: not JSON: {error}") from None
    known = {"name", "estimated", "cpu", "gpu"}
    if not isinstance(content, dict) or content.keys() != known:
        raise ProfileError(f"{path}: a machine profile has the keys {', '.join(sorted(known))} and no others")
    gpu = content["gpu"]
    return DeviceProfile(
        name=str(content["name"]),
        estimated=bool(content["estimated"]),
        cpu=_rates(CpuRates, content["cpu"], f"{path}: cpu"),
        gpu=None if gpu is None else _rates(GpuRates, gpu, f"{path}: gpu"),
    )


def _rates(kind: type[_Rates], content: Any, where: str) -> _Rates:
    names = {field.name for field in fields(kind)}
    if not isinstance(content, dict) or content.keys() != names:
        raise ProfileError(f"{where}: has to have the keys {', '.join(sorted(names))} and no others")
    for name, value in content.items():
        if name == "name":
            continue
        number = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < _ABSURD
        if not number or (name.endswith("_per_s") and value == 0):
            raise ProfileError(f"{where}.{name}: {value!r} is not a positive number")
    return kind(**content)
