"""`hybrid doctor`: whether this machine has what a run needs."""

import json
import os
import sys
from pathlib import Path

from hybrid.cli.flags import DoctorFlags
from hybrid.show.console import emit, width
from hybrid.show.progress import ProgressLine

EXAMPLES = """\
hybrid doctor
hybrid doctor --model ~/models/mistral-7b --json
"""

_PROBLEMS = 1


def doctor(flags: DoctorFlags) -> int:
    """Look at everything a run depends on: CPU, memory, packages, GPU, and a model if one is named.

    Each problem comes with the command that mends it; the exit code is 1 when there is one.
    """
    with ProgressLine(sys.stderr, "Examining this machine"):
        from hybrid.doctor import examine, report_text

        found = examine(None if flags.model is None else Path(flags.model), os.environ)
    emit(json.dumps(found.to_json(), indent=2) + "\n" if flags.as_json else report_text(found, width(sys.stdout)))
    return _PROBLEMS if found.problems else 0
