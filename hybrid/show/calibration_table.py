"""Tabulates measured rates for people, each beside the estimate that it takes the place of."""

import io
from collections.abc import Iterator

from offload.machine.profile import CpuRates, DeviceProfile, GpuRates
from offload.spec.units import counted, format_bytes

_CPU = {
    "ram_bytes_per_s": "RAM, reading",
    "ram_bytes_per_s_beside_bus": "RAM beside the bus",
    "disk_bytes_per_s": "disk, reading",
    "attention_bytes_per_s": "attention, reading the cache",
    "attention_flops_per_s": "attention, computing with it",
    "island_s": "an island of a decode step",
    "launch_s": "a CPU kernel's launch",
    "step_s": "a decode step, besides",
}
_GPU = {
    "vram_bytes_per_s": "VRAM, reading",
    "bus_bytes_per_s": "bus to the device, pinned",
    "bus_back_bytes_per_s": "bus back, pinned",
    "pageable_bytes_per_s": "bus to the device, not pinned",
    "copy_s": "a copy, besides its bytes",
    "round_trip_s": "a round trip of activations",
    "launch_s": "a GEMM's launch",
    "context_bytes": "context",
    "workspace_bytes": "workspace",
}

Row = tuple[str, str, str]


def calibration_text(measured: DeviceProfile, estimate: DeviceProfile, width: int) -> str:
    """The table: what, as measured, as estimated."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    device = "modelled" if measured.estimated else "measured"
    table.add_column(f"{measured.name}, {counted(measured.cpu.threads, 'thread')}", overflow="fold")
    table.add_column(device, justify="right")
    table.add_column(f"estimate ({estimate.name})", justify="right")
    for row in _rows(measured, estimate):
        table.add_row(*row)
    console = Console(width=width, file=io.StringIO(), color_system=None, markup=False, emoji=False)
    with console.capture() as capture:
        console.print(table)
    return "\n".join(line.rstrip() for line in capture.get().splitlines() if line.strip()) + "\n"


def _rows(measured: DeviceProfile, estimate: DeviceProfile) -> Iterator[Row]:
    for weight_format, points in measured.cpu.multiply_bytes_per_s.items():
        for rows, value in points.items():
            yield (
                f"CPU, {weight_format} weights, {counted(rows, 'row')}",
                _text("_per_s", value),
                _text("_per_s", _rate(estimate.cpu, weight_format, rows)),
            )
    yield from (_row(name, label, measured.cpu, estimate.cpu) for name, label in _CPU.items())
    if measured.gpu is not None:
        for weight_format, value in measured.gpu.flops_per_s.items():
            estimated = estimate.gpu.flops_per_s[weight_format] if estimate.gpu else 0.0
            yield f"{weight_format} GEMM", _text("flops_per_s", value), _text("flops_per_s", estimated)
        yield from (_row(name, label, measured.gpu, estimate.gpu) for name, label in _GPU.items())


def _rate(cpu: CpuRates, weight_format: str, rows: int) -> float:
    return cpu.multiply_bytes_per_s[weight_format].get(rows, 0.0)


def _row(name: str, label: str, measured: CpuRates | GpuRates, estimate: CpuRates | GpuRates | None) -> Row:
    return label, _text(name, getattr(measured, name)), _text(name, getattr(estimate, name, 0.0))


def _text(name: str, value: float) -> str:
    if not value:
        return "-"
    if name.endswith("flops_per_s"):
        return f"{value / 1e12:.2f} TFLOP/s" if value >= 1e12 else f"{value / 1e9:.2f} GFLOP/s"
    if "_per_s" in name:
        return f"{value / 1e9:.2f} GB/s"
    return f"{value * 1e6:.1f} µs" if name.endswith("_s") else format_bytes(value)
