"""Part 8: decode steps at half of the Linears' bytes, recorded as `hybrid run --timeline` does."""

import importlib.util

from bench.gpu.job import Job, Json, Save
from bench.gpu.overlap import busy_shares
from bench.gpu.random_model import model_folder
from bench.gpu.sizes import ModelRuns
from bench.gpu.speed import budget
from hybrid.cli.recording import start_recording
from hybrid.loading.open_engine import open_engine
from hybrid.loading.settings import RunSettings
from hybrid.show.picture_files import write_timeline_picture
from offload.observe.op_times import settled
from offload.observe.timeline import DECODE
from offload.spec.units import counted, format_seconds

_SHARE = 0.5
_STEPS = 9  # the first is not counted


def run(job: Job, save: Save) -> Json:
    """Record, write timeline.json and, where matplotlib is there, timeline.png."""
    shape, dtype = job.sizes.timeline_model
    asked = budget(job, ModelRuns(shape, dtype, (_SHARE,), 0), _SHARE)
    settings = RunSettings(
        model=model_folder(job, shape, dtype),
        cuda=asked,
        device=job.device,
        machine=job.machine,
        context_tokens=job.sizes.context_tokens,
        threads=job.sizes.threads,
    )
    file = job.out / "timeline.json"
    recording = start_recording(file, adds_up=False)
    assert recording is not None
    with open_engine(settings, timeline=recording.timeline) as engine:
        engine.prefill(list(range(3, 3 + job.sizes.prompt_tokens)))
        for number in range(_STEPS):
            engine.decode(100 + number)
        name = f"{shape} {dtype} with --cuda {asked}"
        recording.write(name)
    steps = settled(recording.timeline.steps(), DECODE)
    found: Json = {
        "model": name,
        "steps": len(steps),
        "step_s": sorted(step.duration_s for step in steps)[len(steps) // 2],
        "busy": busy_shares(steps),
        "files": [file.name],
    }
    if importlib.util.find_spec("matplotlib") is not None:
        picture = job.out / "timeline.png"
        write_timeline_picture(recording.timeline.steps(), name, recording.timeline.modelled, picture)
        found["files"].append(picture.name)
    return found


def markdown(found: Json) -> list[str]:
    """Describe what was recorded, and where it is."""
    busy = ", ".join(f"{name} {share:.0%}" for name, share in found["busy"].items())
    return [
        f"- {found['model']}: {counted(found['steps'], 'decode step')}, "
        f"the middle one {format_seconds(found['step_s'])}",
        f"- busy: {busy}",
        f"- {', '.join(found['files'])}",
    ]
