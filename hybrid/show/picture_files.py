"""The files of pictures: whether they can be drawn and written, before the work; and writing them, after it."""

from collections.abc import Sequence
from pathlib import Path

from hybrid.errors import UsageError
from hybrid.show.console import check_writable, not_writable
from hybrid.show.matplotlib_png import draw_plan, draw_timeline, require_matplotlib
from hybrid.show.plan_picture import plan_picture
from hybrid.show.timeline_picture import timeline_picture
from offload.observe.timeline import Step
from offload.plan.plan import Plan


def is_picture(file: Path) -> bool:
    """Tell whether a file is to be a picture, by its name."""
    return file.suffix.lower() == ".png"


def check_picture(flag: str, file: Path) -> None:
    """Refuse a picture that could not be drawn, or written, in the end. Raises UsageError, InstallationError."""
    if not is_picture(file):
        raise UsageError(f"{flag} {file}: must end in .png")
    require_matplotlib(f"{flag} {file}")
    check_writable(flag, file)


def write_plan_picture(plan: Plan, file: Path) -> None:
    """Draw a plan for --draw. Raises UsageError when the file cannot be written."""
    try:
        draw_plan(plan_picture(plan), file)
    except OSError as error:
        raise not_writable("--draw", file, error) from None


def write_timeline_picture(steps: Sequence[Step], model: str, modelled: bool, file: Path) -> None:
    """Draw a typical step for --timeline. Raises UsageError when there is none, or the file cannot be written."""
    try:
        draw_timeline(timeline_picture(steps, model, modelled), file)
    except OSError as error:
        raise not_writable("--timeline", file, error) from None
