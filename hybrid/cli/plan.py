"""`hybrid plan`: what would go where, and what it would cost."""

import json
import sys
from dataclasses import replace

from hybrid.cli.early_checks import check_early
from hybrid.cli.flag_values import run_settings
from hybrid.cli.flags import PlanFlags
from hybrid.show.console import emit, width
from hybrid.show.progress import ProgressLine
from hybrid.show.wrapping import fold

EXAMPLES = """\
hybrid plan --model ~/models/mistral-7b --cuda 6
hybrid plan --model mistralai/Mistral-7B-Instruct-v0.2 --cuda 6 --machine colab-t4 --json
"""


def plan(flags: PlanFlags) -> int:
    """Show where the weights would go, and what a decode step would cost, without running anything."""
    settings = run_settings(flags)
    check_early(settings)
    with ProgressLine(sys.stderr) as progress:
        from hybrid.loading.planning import make_plan
        from hybrid.loading.resolve import resolve_model
        from hybrid.show import report

        if flags.draw is not None:
            from hybrid.show.picture_files import check_picture, write_plan_picture

            check_picture("--draw", flags.draw)
        path = resolve_model(
            settings.model,
            settings.variant,
            config_only=True,
            allow_unused=settings.allow_unused,
            progress=progress,
        )
        progress.on_stage("Planning", 0)
        made = make_plan(replace(settings, model=path))
    if flags.as_json:
        emit(json.dumps(made.to_json(), indent=2) + "\n")
    else:
        text = report.plan_text(made, flags.cuda, width(sys.stdout), each_linear=flags.verbose)
        emit(fold(text, width(sys.stdout)) if sys.stdout.isatty() else text)
    if flags.draw is not None:
        write_plan_picture(made, flags.draw)
    return 0
