"""A line in a notebook's cell that is drawn again and again."""

import sys
from collections.abc import Sequence
from typing import Any


class NotebookLine:
    """Has `draw` and `erase` as `RedrawnLines` has them; `shell` is IPython's, of a kernel."""

    def __init__(self, shell: Any) -> None:
        self._publish = shell.display_pub.publish
        self._id = f"hybrid-progress-{id(self)}"
        self._is_shown = False

    def draw(self, lines: Sequence[str]) -> None:
        """Show one line in the place of the one before."""
        self._publish({"text/plain": "\n".join(lines)}, transient={"display_id": self._id}, update=self._is_shown)
        self._is_shown = True

    def erase(self) -> None:
        """Show nothing."""
        if self._is_shown:
            self.draw(("",))


def notebook_line() -> NotebookLine | None:
    """A line of the cell that runs, where a notebook's kernel runs this; nothing is imported to find out."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return NotebookLine(shell) if getattr(shell, "kernel", None) is not None else None
