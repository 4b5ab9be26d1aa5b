"""Part 7: was the VRAM of each run within its budget? Read off what the part "speed" saw."""

from bench.gpu.job import Job, Json, Save
from offload.devices.cuda.vram_meter import VramSource
from offload.spec.units import format_bytes


def run(job: Job, save: Save) -> Json:
    """A verdict for every run with a budget. Raises RuntimeError when there are none."""
    speed = job.found("speed")
    rows = [_row(run) for run in speed.get("runs", ()) if "error" not in run and run["budget_bytes"]]
    if not rows:
        raise RuntimeError("no run with a budget was measured")
    return {"method": speed["method"], "runs": rows}


def _row(run: Json) -> Json:
    """Peaks, and whether they are within the budget; None when nothing could tell.

    The run's own measurement decides where NVML told what its process alone took, else NVML's from outside. What CUDA
    says counts all processes: within the budget it is a proof, above it says nothing.
    """
    budget, nvml, used = run["budget_bytes"], run.get("nvml_peak_bytes"), run["device_used_bytes"]
    own = run["vram_peak_bytes"] if run["vram_peak_source"] == VramSource.PROCESS else None
    measured = nvml if own is None else own
    if measured is not None:
        within: bool | None = measured <= budget
    else:
        within = True if used is not None and used <= budget else None
    return {
        "run": f"{run['model']} {run['dtype']} at {run['share']:.0%}",
        "budget_bytes": budget,
        "plan_bytes": run["plan_vram_bytes"],
        "process_peak_bytes": own,
        "nvml_peak_bytes": nvml,
        "device_used_bytes": used,
        "within": within,
    }


def markdown(found: Json) -> list[str]:
    """A row for each run."""
    lines = [
        f"Method: what NVML tells the run of its own process; from outside: {found['method']}.",
        "",
        "| run | --cuda | plan | its process | NVML from outside | whole GPU | within |",
        "|---" * 7 + "|",
    ]
    verdicts = {True: "yes", False: "NO", None: "cannot be told"}
    sizes = ("budget_bytes", "plan_bytes", "process_peak_bytes", "nvml_peak_bytes", "device_used_bytes")
    for row in found["runs"]:
        cells = " | ".join("-" if row[size] is None else format_bytes(row[size]) for size in sizes)
        lines.append(f"| {row['run']} | {cells} | {verdicts[row['within']]} |")
    return lines
