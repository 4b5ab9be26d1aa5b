"""Part 3: the rates of this machine, by `hybrid tune --calibrate`'s own measurement, and the roof beside them."""

import sys
from dataclasses import asdict
from statistics import median
from time import perf_counter

import numpy as np

from bench.gpu.device_time import as_bytes
from bench.gpu.devices import open_device
from bench.gpu.job import Job, Json, Save
from bench.gpu.roof import roof_bytes_per_s
from hybrid.machine.profiles import save_profile
from hybrid.machine.threads import default_threads
from hybrid.tune.calibration import TuneEffort, measure_machine
from hybrid.tune.step_costs import StepEffort
from hybrid.tune.zero_model import ZeroShape
from offload.calibrate.machine import Effort
from offload.devices.base import Device
from offload.spec.units import MIB, counted, format_seconds

_ROUNDS = 5
_LEAST = TuneEffort(
    Effort(weight_bytes=MIB, rounds=1, disk_s=0.01),
    StepEffort(ZeroShape(layers=1, hidden=256, intermediate=256, heads=4, positions=64), steps=1, rounds=1),
    disk_bytes=MIB,
)


def run(job: Job, save: Save) -> Json:
    """Measure, and leave the profile for later parts."""
    found: Json = {}
    device = open_device(job.device)
    try:
        roof, how = roof_bytes_per_s(device, job.sizes.copy_bytes)
        found |= {"roof_bytes_per_s": roof, "roof": how, "pageable_back_bytes_per_s": _pageable_back(device, job)}
        save(found)
    finally:
        device.close()

    def tell(stage: str, share: float) -> None:
        print(f"  {share:4.0%} {stage}", file=sys.stderr, flush=True)

    effort = None if job.sizes.calibrates_well else _LEAST
    threads = job.sizes.threads or default_threads()
    # A busy machine is no reason to go without: the profile says so, and the GPU's rates hold.
    made = measure_machine(job.device, threads, job.work, tell, effort, force=True)
    save_profile(made.profile, job.machine_file)
    cpu = made.profile.cpu
    assert made.profile.gpu is not None
    found["gpu"] = asdict(made.profile.gpu)
    found["cpu"] = {
        "threads": cpu.threads,
        "ram_bytes_per_s": cpu.ram_bytes_per_s,
        "ram_bytes_per_s_beside_bus": cpu.ram_bytes_per_s_beside_bus,
        "disk_bytes_per_s": cpu.disk_bytes_per_s,
        "multiply_bytes_per_s": made.profile.to_json()["cpu"]["multiply_bytes_per_s"],
        "island_s": cpu.island_s,
        "step_s": cpu.step_s,
    }
    found["notes"] = list(made.notes)
    return found


def _pageable_back(device: Device, job: Job) -> float | None:
    """Bytes a second from the device into memory that is not pinned, which a simulated device refuses."""
    if device.simulated:
        return None
    nbytes = job.sizes.copy_bytes
    target = np.zeros(nbytes, np.uint8)
    block, stream = device.allocate(nbytes), device.stream("kit")
    times = []
    for _ in range(_ROUNDS + 1):
        began_s = perf_counter()
        stream.copy_to_host(target, as_bytes(block, 0, nbytes))
        stream.synchronize()
        times.append(perf_counter() - began_s)
    device.free(block)
    return nbytes / median(times[1:])


def markdown(found: Json) -> list[str]:
    """A table of rates and one of times."""
    lines = ["| | GB/s |", "|---|---|", _rate(f"roof ({found['roof']})", found["roof_bytes_per_s"])]
    if found["pageable_back_bytes_per_s"]:
        lines.append(_rate("device to host, pageable", found["pageable_back_bytes_per_s"]))
    if "gpu" not in found:
        return lines
    gpu, cpu = found["gpu"], found["cpu"]
    lines += [
        _rate("VRAM, a GEMM with one row", gpu["vram_bytes_per_s"]),
        _rate("host to device, pinned", gpu["bus_bytes_per_s"]),
        _rate("device to host, pinned", gpu["bus_back_bytes_per_s"]),
        _rate("host to device, pageable", gpu["pageable_bytes_per_s"]),
        _rate(f"RAM, read by {counted(cpu['threads'], 'thread')}", cpu["ram_bytes_per_s"]),
        _rate("RAM, while the bus reads it too", cpu["ram_bytes_per_s_beside_bus"]),
        _rate("disk", cpu["disk_bytes_per_s"]),
        "",
        f"- a GEMM: {format_seconds(gpu['launch_s'])}; a copy besides its bytes: {format_seconds(gpu['copy_s'])}; "
        f"there and back: {format_seconds(gpu['round_trip_s'])}",
        f"- GEMM with many rows, TFLOP/s: {', '.join(f'{f} {v / 1e12:.1f}' for f, v in gpu['flops_per_s'].items())}",
    ]
    return lines + [f"- {note}" for note in found["notes"]]


def _rate(name: str, value: float) -> str:
    return f"| {name} | {value / 1e9:,.1f} |"
