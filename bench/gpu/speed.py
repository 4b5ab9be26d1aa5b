"""Part 6: decode and prefill of random models at several budgets, predicted and measured, and the VRAM they took.

A budget is what the process takes before the first weight plus a share of the Linears' bytes, so that the share says
how much of the model may be in VRAM. Every run is a process of its own; from outside, NVML is read while it lasts.
"""

import json
import shutil
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

from bench.gpu.devices import pci_bus_id
from bench.gpu.job import Job, Json, Save
from bench.gpu.nvml_library import Nvml, PeakMemory
from bench.gpu.random_model import linear_bytes, model_folder
from bench.gpu.sizes import ModelRuns
from offload.errors import DeviceUnavailableError
from offload.spec.units import MIB, format_bytes

_ROOT = Path(__file__).parents[2]
_ACTIVATIONS_BYTES = 160 * MIB  # and alignment; what is not taken stays free
_UNKNOWN_FIXED_BYTES = 1024 * MIB  # when the part "environment" failed


def run(job: Job, save: Save) -> Json:
    """Every model at every budget, as many as there is time for."""
    nvml, method = _nvml(job)
    found: Json = {"method": method, "runs": [], "left_out": []}
    for model in job.sizes.models:
        for share in model.shares:
            name = f"{model.shape} {model.dtype} at {share:.0%}"
            if job.left_s < model.longest_s:
                left = f"{max(0, job.left_s):.0f} s were left, it may take {model.longest_s:.0f}"
                found["left_out"].append(f"{name}: {left}")
                continue
            print(f"  {name}", file=sys.stderr, flush=True)
            try:
                reading = _measure(job, model, share, nvml)
            except Exception as error:  # one that fails must not take the others with it
                reading = {"error": _last_line(error)}
            found["runs"].append({"model": model.shape, "dtype": model.dtype, "share": share, **reading})
            save(found)
        if (model.shape, model.dtype) != job.sizes.timeline_model:
            shutil.rmtree(job.work / f"{model.shape}-{model.dtype}", ignore_errors=True)
    formats = job.found("environment").get("gpu", {}).get("multiplies", {})
    found["int4"] = formats.get("int4", "not known")
    return found


def budget(job: Job, model: ModelRuns, share: float) -> str:
    """The text of --cuda, in whole MiB."""
    if share == 0:
        return "0"
    fixed = job.found("environment").get("gpu", {}).get("fixed_bytes", {"unknown": _UNKNOWN_FIXED_BYTES})
    around = MIB if job.modelled else _ACTIVATIONS_BYTES
    nbytes = sum(fixed.values()) + around + share * linear_bytes(model.shape, model.dtype)
    return f"{-(-int(nbytes) // MIB)}MiB"


def _measure(job: Job, model: ModelRuns, share: float, nvml: Nvml | None) -> Json:
    asked = budget(job, model, share)
    settings = {
        "model": str(model_folder(job, model.shape, model.dtype)),
        "cuda": asked,
        "device": "auto" if asked == "0" else job.device,
        "context_tokens": job.sizes.context_tokens,
        "machine": job.machine,
        "threads": job.sizes.threads,
        "prompt_tokens": job.sizes.prompt_tokens,
        "decode_tokens": job.sizes.decode_tokens,
    }
    command = [sys.executable, "-m", "bench.gpu.model_run", json.dumps(settings)]
    watch = PeakMemory(nvml) if nvml is not None else None
    with watch or nullcontext():
        done = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, timeout=max(1.0, job.left_s))
    if done.returncode:
        raise RuntimeError(f"status {done.returncode}: {done.stderr[-2000:]}")
    reading: Json = json.loads(done.stdout.splitlines()[-1])
    peak = {"nvml_peak_bytes": watch.peak_bytes, "nvml_samples": watch.samples} if watch is not None else {}
    return {"cuda": asked, **reading, **peak}


def _nvml(job: Job) -> tuple[Nvml | None, str]:
    """Open what reads the GPU's memory, and describe it."""
    if job.modelled:
        return None, "modelled: the simulated device refuses what does not fit"
    try:
        return Nvml(pci_bus_id()), "NVML from another process, every 5 ms, less what was in use before"
    except DeviceUnavailableError as error:
        return None, f"cudaMemGetInfo after load and after the run, others' memory included; {error}"


def _last_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[-1][-300:]}"


def markdown(found: Json) -> list[str]:
    """A row for each run."""
    lines = [
        "| model | budget | resident, streamed, host | decode tokens/s | predicted | step / predicted "
        "| prefill tokens/s | predicted | waits for |",
        "|---" * 9 + "|",
    ]
    for run in found["runs"]:
        name = f"{run['model']} {run['dtype']}"
        if "error" in run:
            lines.append(f"| {name} | {run['share']:.0%} | failed: {run['error'].replace('|', '/')} | | | | | | |")
            continue
        parts = ", ".join(format_bytes(run["bytes"][place]) for place in ("resident", "streamed", "host"))
        tokens = run["prefill_tokens"]
        lines.append(
            f"| {name} | {run['share']:.0%}: {run['cuda']} | {parts} | {1 / run['decode_step_s']:.1f} "
            f"| {1 / run['predicted_decode_step_s']:.1f} "
            f"| {run['decode_step_s'] / run['predicted_decode_step_s']:.2f} | {tokens / run['prefill_s']:.0f} "
            f"| {tokens / run['predicted_prefill_s']:.0f} | {run['bound_by']} |"
        )
    lines.append("")
    measured = [run for run in found["runs"] if "error" not in run]
    if any(run["estimated"] for run in measured):
        lines.append("- predicted with estimated rates, not with rates that were measured on this machine")
    for run in measured:
        lines += [f"- {run['model']} {run['dtype']} at {run['share']:.0%}: {line}" for line in run["warnings"]]
    lines += [f"- left out: {line}" for line in found["left_out"]]
    if "int4" in found:
        lines.append(f"- int4 on the device: {found['int4']}; the kit has no int4 model")
    return lines
