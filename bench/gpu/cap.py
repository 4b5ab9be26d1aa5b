"""Part 7: was the VRAM of each run within its budget? Read off what the part "speed" saw."""

from bench.gpu.job import Job, Json, Save
from offload.units import format_bytes


def run(job: Job, save: Save) -> Json:
    """A verdict for every run with a budget. Raises RuntimeError when there are none."""
    speed = job.found("speed")
    rows = [_row(run) for run in speed.get("runs", ()) if "error" not in run and run["budget_bytes"]]
    if not rows:
        raise RuntimeError("no run with a budget was measured")
    return {"method": speed["method"], "runs": rows}


def _row(run: Json) -> Json:
    """Peaks, and whether they are within the budget; None when nothing could tell.

    What CUDA says counts all processes: within the budget it is a proof, above it says nothing.
    """
    budget, nvml, used = run["budget_bytes"], run.get("nvml_peak_bytes"), run["device_used_bytes"]
    if nvml is not None:
        within: bool | None = nvml <= budget
    else:
        within = True if used is not None and used <= budget else None
    return {
        "run": f"{run['model']} {run['dtype']} at {run['share']:.0%}",
        "budget_bytes": budget,
        "plan_bytes": run["plan_vram_bytes"],
        "nvml_peak_bytes": nvml,
        "device_used_bytes": used,
        "within": within,
    }


def markdown(found: Json) -> list[str]:
    """A row for each run."""
    lines = [
        f"Method: {found['method']}.",
        "",
        "| run | --cuda | plan | NVML peak | whole GPU | within |",
        "|---" * 6 + "|",
    ]
    verdicts = {True: "yes", False: "NO", None: "cannot be told"}
    for row in found["runs"]:
        peaks = (row["budget_bytes"], row["plan_bytes"], row["nvml_peak_bytes"], row["device_used_bytes"])
        sizes = " | ".join("-" if nbytes is None else format_bytes(nbytes) for nbytes in peaks)
        lines.append(f"| {row['run']} | {sizes} | {verdicts[row['within']]} |")
    return lines
