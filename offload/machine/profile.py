"""The device profile: the rates and sizes of one machine that the cost model computes with. Plain data, JSON."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from offload.errors import ProfileError
from offload.printable import printable
from offload.small_files import UnreadableFileError, read_small_json
from offload.spec.linear import WeightFormat

# No machine is larger, faster or slower than that, and the planner computes with all that lies between.
_MAX_THREADS = 1 << 16
_MAX_BYTES_THERE = 1 << 60
_MAX_PER_S = 1e18
_MAX_S = 1e4
_MAX_NAME = 200
_MAX_BYTES = 1 << 20  # of the file
_ROWS = re.compile("[1-9][0-9]{0,8}")
_Rates = TypeVar("_Rates", "CpuRates", "GpuRates")


@dataclass(frozen=True)
class CpuRates:
    """Host side: RAM, disk and what one step pays apart from reading weights; all with `threads` threads.

    `multiply_bytes_per_s` has, for a weight format and a number of rows of x, the stored weight bytes that a multiply
    gets through in a second.
    """

    threads: int
    ram_bytes: int
    ram_bytes_per_s: float  # reading
    ram_bytes_per_s_beside_bus: float  # reading while the bus copies out of RAM
    disk_bytes_per_s: float  # reading one file from front to back
    multiply_bytes_per_s: Mapping[str, Mapping[int, float]]
    attention_bytes_per_s: float  # attention: reading the cache
    attention_flops_per_s: float  # and what it computes with it, counted as `attention.pair_flops` does
    island_s: float  # one island of a decode step, without attention
    launch_s: float  # one host kernel
    step_s: float  # once a step: inputs, logits

    def multiply_s(self, weight_format: WeightFormat, nbytes: float, rows: int) -> float:
        """Seconds to multiply `rows` rows of x with `nbytes` of stored weights.

        Between the measured numbers of rows the time is a straight line; beyond the last it grows with the rows.
        """
        counts, times = self._points[weight_format]
        if rows >= counts[-1]:
            return nbytes * times[-1] * rows / counts[-1]
        if rows <= counts[0]:
            return nbytes * times[0]
        return nbytes * float(np.interp(rows, counts, times))

    @cached_property
    def _points(self) -> dict[str, tuple[list[int], list[float]]]:
        """Measured numbers of rows, and what a byte takes at each, by format."""
        found = {}
        for weight_format, points in self.multiply_bytes_per_s.items():
            counts = sorted(points)
            found[weight_format] = counts, [1 / points[count] for count in counts]
        return found


@dataclass(frozen=True)
class GpuRates:
    """Device side: VRAM, the bus, and fixed costs.

    `flops_per_s` has, for a format of floats, the operations a second of a GEMM with many rows.
    """

    name: str
    vram_bytes: int
    vram_bytes_per_s: float
    flops_per_s: Mapping[str, float]
    bus_bytes_per_s: float  # host to device, pinned
    bus_back_bytes_per_s: float  # device to host, pinned
    pageable_bytes_per_s: float  # host to device, from memory that is not pinned
    copy_s: float  # what a copy costs besides its bytes
    round_trip_s: float  # activations there and back, with one wait
    launch_s: float  # one GEMM
    context_bytes: int
    workspace_bytes: int


@dataclass(frozen=True)
class DeviceProfile:
    """One machine. `estimated` is True until its rates have been measured on it.

    `busy_cpus` is how many of its CPUs other programs kept busy meanwhile, where that was too many.
    """

    name: str
    estimated: bool
    cpu: CpuRates
    gpu: GpuRates | None
    busy_cpus: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """The profile as plain JSON values."""
        content = asdict(self)
        if not self.busy_cpus:
            del content["busy_cpus"]
        rates = self.cpu.multiply_bytes_per_s
        content["cpu"]["multiply_bytes_per_s"] = {
            name: {str(rows): value for rows, value in points.items()} for name, points in rates.items()
        }
        return content


def load_profile(path: Path) -> DeviceProfile:
    """Read a profile. Raises ProfileError, naming file, key and value, for what is missing, unknown or no rate."""
    where = printable(str(path))
    try:
        content = read_small_json(path, _MAX_BYTES)
    except UnreadableFileError as error:
        raise ProfileError(f"{where}: {error}") from None
    known = {"name", "estimated", "cpu", "gpu"}
    if not isinstance(content, dict) or content.keys() - {"busy_cpus"} != known:
        raise ProfileError(f"{where}: a machine profile has the keys {', '.join(sorted(known))} and no others")
    if not isinstance(content["estimated"], bool):
        raise ProfileError(f"{where}: estimated: {_shown(content['estimated'])} is not true or false")
    busy_cpus = content.get("busy_cpus", 0.0)
    if not _is_number(busy_cpus) or not 0 <= busy_cpus <= _MAX_THREADS:
        raise ProfileError(f"{where}: busy_cpus: {_shown(busy_cpus)} is not a number from 0 to {_MAX_THREADS}")
    gpu = content["gpu"]
    return DeviceProfile(
        name=_name(content["name"], f"{where}: name"),
        estimated=content["estimated"],
        cpu=_rates(CpuRates, content["cpu"], f"{where}: cpu"),
        gpu=None if gpu is None else _rates(GpuRates, gpu, f"{where}: gpu"),
        busy_cpus=float(busy_cpus),
    )


def _rates(kind: type[_Rates], content: Any, where: str) -> _Rates:
    names = {field.name: field.type for field in fields(kind)}
    if not isinstance(content, dict) or content.keys() != names.keys():
        raise ProfileError(f"{where}: has to have the keys {', '.join(sorted(names))} and no others")
    values = dict(content)
    for name, value in content.items():
        if name == "multiply_bytes_per_s":
            values[name] = _multiply_rates(value, f"{where}.{name}")
        elif name == "flops_per_s":
            values[name] = _gemm_rates(value, f"{where}.{name}")
        elif name == "name":
            values[name] = _name(value, f"{where}.{name}")
        elif names[name] is int:
            least, most = (1, _MAX_THREADS) if name == "threads" else (0, _MAX_BYTES_THERE)
            values[name] = _count(value, f"{where}.{name}", least, most)
        elif "_per_s" in name:
            _check_rate(value, f"{where}.{name}")
        else:
            _check_seconds(value, f"{where}.{name}")
    return kind(**values)


def _multiply_rates(content: Any, where: str) -> dict[str, dict[int, float]]:
    formats = _check_formats(content, WeightFormat, where)
    for weight_format, points in content.items():
        if not isinstance(points, dict) or "1" not in points or not all(map(_ROWS.fullmatch, points)):
            raise ProfileError(f'{where}.{weight_format}: has to name rates by numbers of rows, "1" among them')
        for rows, value in points.items():
            _check_rate(value, f"{where}.{weight_format}.{rows}")
    return {name: {int(rows): float(value) for rows, value in content[name].items()} for name in formats}


def _gemm_rates(content: Any, where: str) -> dict[str, float]:
    formats = _check_formats(content, (form for form in WeightFormat if form.is_float), where)
    for name, value in content.items():
        _check_rate(value, f"{where}.{name}")
    return {name: float(content[name]) for name in formats}


def _check_formats(content: Any, weight_formats: Iterable[WeightFormat], where: str) -> list[str]:
    """The keys that `content` has to have, and has."""
    formats = [str(weight_format) for weight_format in weight_formats]
    if not isinstance(content, dict) or sorted(content) != sorted(formats):
        raise ProfileError(f"{where}: has to have the keys {', '.join(formats)} and no others")
    return formats


def _name(value: Any, where: str) -> str:
    if not isinstance(value, str) or not value.isprintable() or not 1 <= len(value) <= _MAX_NAME:
        raise ProfileError(f"{where}: {_shown(value)} is not a name of at most {_MAX_NAME} characters")
    return value


def _check_rate(value: Any, where: str) -> None:
    if not _is_number(value) or not 1 <= value <= _MAX_PER_S:
        raise ProfileError(f"{where}: {_shown(value)} is not a number from 1 to {_MAX_PER_S:g}")


def _check_seconds(value: Any, where: str) -> None:
    if not _is_number(value) or not 0 <= value <= _MAX_S:
        raise ProfileError(f"{where}: {_shown(value)} is not a number of seconds from 0 to {_MAX_S:g}")


def _count(value: Any, where: str, least: int, most: int) -> int:
    if not _is_number(value) or not least <= value <= most or int(value) != value:
        raise ProfileError(f"{where}: {_shown(value)} is not a whole number from {least} to {most}")
    return int(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _shown(value: Any) -> str:
    text = ascii(value)
    return text if len(text) <= 80 else text[:77] + "..."
