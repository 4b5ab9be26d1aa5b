"""Tells every part of the kit its job, and keeps what it found."""

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.gpu.sizes import SIZES, Sizes

Json = dict[str, Any]
Save = Callable[[Json], None]


@dataclass(frozen=True)
class Job:
    """One run of the kit. `deadline_s` is on time.monotonic(), which all processes of a machine share.

    `out` gets pictures and timelines; `work` gets models and what the parts found, and is gone in the end.
    """

    device: str  # "cuda" or "simulated"
    size: str  # a name in SIZES
    out: Path
    work: Path
    deadline_s: float
    command: str = ""
    commit: str = field(default="")

    @property
    def sizes(self) -> Sizes:
        """Give the sizes of everything."""
        return SIZES[self.size]

    @property
    def modelled(self) -> bool:
        """True when no GPU takes part, so that no number says anything about one."""
        return self.device == "simulated"

    @property
    def left_s(self) -> float:
        """Seconds until this part has to be done."""
        return self.deadline_s - time.monotonic()

    @property
    def machine_file(self) -> Path:
        """The profile that the part "rates" measures; not there when that failed."""
        return self.work / "machine.json"

    @property
    def machine(self) -> str | None:
        """The profile for plans; None for one that comes with the package.

        That one serves a rehearsal: any CPU beats the simulated device on models as small as the rehearsal's.
        """
        return str(self.machine_file) if self.machine_file.exists() and not self.modelled else None

    def found(self, part: str) -> Json:
        """Read what an earlier part found, or as much of it as there is."""
        try:
            content: Json = json.loads(self.found_file(part).read_text())
        except OSError:
            return {}
        return content

    def found_file(self, part: str) -> Path:
        """Name the file in which a part keeps what it found."""
        return self.work / f"{part}.found.json"


def write_json(path: Path, content: Json) -> None:
    """Write JSON; `path` is replaced when all is written."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write text; `path` is replaced when all is written."""
    unfinished = path.with_name(path.name + ".part")
    unfinished.write_text(text, encoding="utf-8")
    os.replace(unfinished, path)
