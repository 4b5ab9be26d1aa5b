"""Part 4: what part of the roof the multiplications of a few rows reach, and how exact they are.

Each multiplication reads another part of a block far larger than caches. Results are compared with float64 sums
over the same stored values, at some of the columns; the error is relative to the sum of the magnitudes.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass

import numpy as np

from bench.gpu.device_time import Bench, as_bytes
from bench.gpu.devices import open_device
from bench.gpu.gemm_cases import GemmCase, cases, matrices
from bench.gpu.job import Job, Json, Save
from bench.gpu.roof import roof_bytes_per_s
from bench.random_weights import DTYPES, Weights
from offload.devices.base import Device, DeviceArray
from offload.spec.arrays import HostArray, aligned
from offload.spec.linear import WeightFormat
from offload.spec.units import MIB, counted

# Of the sum of magnitudes: far more than fp32 sums lose, far less than any mistake; so is an x rounded the other way.
TOLERANCE = 1e-4
_SCRATCH_BYTES = 64 * MIB


@dataclass(frozen=True)
class KernelRate:
    """One multiplication; rates and shares count the bytes of the weight alone."""

    kernel: str
    weights: str
    matrix: str
    inner: int
    columns: int
    rows: int
    seconds: float
    bytes_per_s: float
    roof_share: float
    error: float
    exact: bool


def run(job: Job, save: Save) -> Json:
    """Measure every format that the device multiplies; what it does not is said."""
    device = open_device(job.device)
    try:
        roof, how = roof_bytes_per_s(device, job.sizes.copy_bytes)
        found: Json = {"roof_bytes_per_s": roof, "roof": how, "tolerance": TOLERANCE, "readings": []}
        found["not_measured"] = {str(form): reason for form in WeightFormat if (reason := device.supports(form))}
        for form in WeightFormat:
            if form.is_float and not device.supports(form):
                for reading in _readings(device, job, form, roof, found["not_measured"]):
                    found["readings"].append(asdict(reading))
                save(found)
        return found
    finally:
        device.close()


def _readings(
    device: Device, job: Job, form: WeightFormat, roof: float, not_measured: dict[str, str]
) -> Iterator[KernelRate]:
    """Everything with weights in one format. A kernel that fails is named in `not_measured`."""
    values = Weights(DTYPES[str(form)]).tensor("w", (job.sizes.copy_bytes // form.itemsize_bytes, 1)).reshape(-1)
    pinned = device.allocate_pinned(values.nbytes)
    pinned[:] = values.view(np.uint8)
    shapes = matrices(job.sizes.layer)
    largest = aligned(max(m.inner * m.columns for m in shapes) * form.itemsize_bytes)
    most = max(job.sizes.rows)
    results = max(aligned(most * m.inner * 4) + aligned(most * m.columns * 4) for m in shapes)
    bench = Bench(device, max(job.sizes.weight_bytes, 2 * largest), results + _SCRATCH_BYTES)
    try:
        bench.fill(pinned)
        if job.modelled:
            not_measured["cuBLAS, CUDA C kernels"] = "they run on a GPU only"
        library, own = "" if job.modelled else "cuBLAS", device.input_format(WeightFormat.FP16) is WeightFormat.FP32
        for case in cases(form, library, own, job.sizes.layer, job.sizes.rows, values):
            try:
                yield _measure(bench, case, job.sizes.repetitions, pinned, roof)
            except Exception as error:
                name = f"{case.kernel}, {case.weights}, {case.matrix.name}, {counted(case.rows, 'row')}"
                not_measured[name] = f"{type(error).__name__}: {error}"
    finally:
        bench.close()


def _measure(bench: Bench, case: GemmCase, repetitions: int, blocker: HostArray, roof: float) -> KernelRate:
    matrix, rows = case.matrix, case.rows
    stored_x = case.x()
    pinned = bench.device.allocate_pinned(stored_x.nbytes)
    pinned[:] = stored_x.reshape(-1).view(np.uint8)
    bench.stream.copy_to_device(as_bytes(bench.results, 0, pinned.nbytes), pinned)
    x = DeviceArray(bench.results, 0, (rows, matrix.inner), case.x_format)
    y = DeviceArray(bench.results, aligned(x.nbytes), (rows, matrix.columns), WeightFormat.FP32)
    step = aligned(case.weight_bytes)
    offsets = [number % (bench.weights.nbytes // step) * step for number in range(repetitions)]

    def queue() -> None:
        for offset in offsets:
            case.queue(bench, x, y, offset)

    queue()  # loads the kernel
    bench.stream.synchronize()
    seconds = bench.typical_s(blocker, queue)
    back = bench.device.allocate_pinned(y.nbytes)
    bench.stream.copy_to_host(back, y)
    bench.stream.synchronize()
    rate = case.weight_bytes / seconds
    error = case.error(back.view(np.float32).reshape(y.shape), offsets[-1])
    return KernelRate(
        kernel=case.kernel,
        weights=case.weights,
        matrix=matrix.name,
        inner=matrix.inner,
        columns=matrix.columns,
        rows=rows,
        seconds=seconds,
        bytes_per_s=rate,
        roof_share=rate / roof,
        error=error,
        exact=error <= TOLERANCE,
    )


def markdown(found: Json) -> list[str]:
    """A table with a row for each kernel, storage and matrix, and a column for each number of rows."""
    counts = sorted({reading["rows"] for reading in found["readings"]})
    head = " | ".join(f"M={rows}" for rows in counts)
    lines = [
        f"Share of the roof of {found['roof_bytes_per_s'] / 1e9:,.0f} GB/s ({found['roof']}), by weight bytes alone:",
        "",
        f"| kernel | weights | matrix | {head} | largest error |",
        "|---" * (4 + len(counts)) + "|",
    ]
    table: dict[tuple[str, str, str], dict[int, Json]] = {}
    for reading in found["readings"]:
        name = f"{reading['matrix']} {reading['inner']}x{reading['columns']}"
        table.setdefault((reading["kernel"], reading["weights"], name), {})[reading["rows"]] = reading
    for names, by_rows in table.items():
        shares = " | ".join(f"{by_rows[count]['roof_share']:.0%}" if count in by_rows else "-" for count in counts)
        error = max(reading["error"] for reading in by_rows.values())
        lines.append(f"| {' | '.join(names)} | {shares} | {error:.1e} |")
    wrong = sum(not reading["exact"] for reading in found["readings"])
    lines += ["", f"- {wrong} of {len(found['readings'])} results are off by more than {found['tolerance']:.0e}"]
    alike: dict[str, list[str]] = {}
    for name, reason in found["not_measured"].items():
        alike.setdefault(reason, []).append(name)
    for reason, same in alike.items():
        more = f" and {len(same) - 1} more" if len(same) > 1 else ""
        lines.append(f"- {same[0]}{more}: not measured, {reason}")
    return lines
