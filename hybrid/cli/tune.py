"""`hybrid tune`: the rates of this machine."""

import json
import sys

from hybrid.cli.flags import TuneFlags
from hybrid.errors import UsageError
from hybrid.show.console import check_writable, emit, say, width
from hybrid.show.progress import ProgressLine

EXAMPLES = """\
hybrid tune --calibrate
hybrid tune --calibrate --threads 4 --out four-threads.json
"""


def tune(flags: TuneFlags) -> int:
    """Measure this machine, so that plans and predicted speeds rest on its own rates."""
    if not flags.calibrate:
        raise UsageError("say what to tune: hybrid tune --calibrate measures this machine")

    from hybrid.machine.profiles import calibration_file, save_profile
    from hybrid.machine.threads import resolve_threads, threads_warning
    from hybrid.show.calibration_table import calibration_text
    from hybrid.tune.calibration import measure_machine

    out = flags.out
    if out is not None:
        if out.suffix != ".json":
            raise UsageError(f"--out {out}: must end in .json, or --machine does not take it for a file")
        check_writable("--out", out)
    folder = calibration_file("").parent if out is None else out.absolute().parent
    for warning in threads_warning(flags.threads):
        say(f"note: {warning}")
    with ProgressLine(sys.stderr) as progress:
        threads = resolve_threads(flags.threads)
        made = measure_machine(flags.device, threads, folder, progress.on_share, force=flags.force)
    path = out or calibration_file(made.profile.name)
    save_profile(made.profile, path)
    if flags.as_json:
        emit(json.dumps(made.profile.to_json(), indent=2) + "\n")
    else:
        emit(calibration_text(made.profile, made.estimate, width(sys.stdout)))
    for note in made.notes:
        say(f"note: {note}")
    say(f"saved as {path}" + ("" if out is None and not made.profile.estimated else f"; --machine {path} uses it"))
    return 0
