"""Records what a run is asked for: a timeline in a file, where the time of its steps went, what it took."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hybrid.errors import UsageError
from hybrid.show.console import check_writable, not_writable
from hybrid.show.picture_files import check_picture, is_picture, write_timeline_picture
from offload.observe.op_times import OpTimes, op_times, settled
from offload.observe.timeline import DECODE, Timeline

# Enough decode steps to see what one is like, and few enough to keep; the first of them only counts when it is alone.
_STEPS_IN_FILE, _STEPS_ADDED_UP = 8, 64


@dataclass(frozen=True)
class Recording:
    """A timeline of the first steps, and what becomes of it."""

    timeline: Timeline
    file: Path | None
    adds_up: bool  # whether --op-times was given

    def op_times(self) -> OpTimes | None:
        """Give the operator times of the decode steps; None when that was not asked, or when there were none."""
        if not self.adds_up:
            return None
        self.timeline.stop()
        return op_times(settled(self.timeline.steps(), DECODE), self.timeline.modelled)

    def write(self, model: str) -> None:
        """Write the timeline, if it has a file. Raises UsageError when that cannot be written.

        Must be called before the device closes: its part is read now.
        """
        if self.file is None:
            return
        if is_picture(self.file):
            self.timeline.stop()
            write_timeline_picture(self.timeline.steps(), model, self.timeline.modelled, self.file)
            return
        try:
            self.timeline.write(self.file)
        except OSError as error:
            raise not_writable("--timeline", self.file, error) from None


def start_recording(file: Path | None, adds_up: bool) -> Recording | None:
    """Begin a recording; None for nothing. Raises UsageError for a file that could not be written in the end."""
    if file is not None and is_picture(file):
        check_picture("--timeline", file)
    elif file is not None:
        if file.suffix.lower() != ".json":
            raise UsageError(f"--timeline {file}: must end in .json, for ui.perfetto.dev, or in .png, for a picture")
        check_writable("--timeline", file)
    if file is None and not adds_up:
        return None
    return Recording(Timeline(_STEPS_ADDED_UP if adds_up else _STEPS_IN_FILE, looks_inside=adds_up), file, adds_up)


def write_stats(path: Path, stats: Sequence[dict[str, Any]]) -> None:
    """Write what each completion took as JSON: an object for one, a list for several. Raises UsageError."""
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        try:
            unfinished.write_text(json.dumps(stats[0] if len(stats) == 1 else stats, indent=2) + "\n")
            unfinished.replace(path)
        finally:
            unfinished.unlink(missing_ok=True)
    except OSError as error:
        raise not_writable("--stats", path, error) from None
