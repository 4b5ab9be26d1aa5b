"""Shows progress of what lasts longer than a moment: one line on terminals, in notebooks, else one now and then."""

from collections import deque
from collections.abc import Callable
from contextlib import suppress
from threading import Event, Lock, Thread
from time import monotonic
from types import TracebackType
from typing import TextIO

from hybrid.progress import Progress
from hybrid.show.console import can_redraw, terminal_size
from hybrid.show.notebook import notebook_line
from hybrid.show.redrawn import RedrawnLines
from offload.printable import printable
from offload.spec.units import format_bytes

_DRAW_EVERY_S = 0.2
_FIRST_PLAIN_S, _PLAIN_EVERY_S = 10.0, 30.0  # where nothing can be redrawn, so that logs stay short
_RATE_OVER_S = 15.0  # a rate is one of the last seconds: downloads and disks change theirs
_FEWEST_BAR_CELLS, _MOST_BAR_CELLS = 6, 40


class ProgressLine(Progress):
    """Shows the stage that is under way while a `with` lasts, and what is left of it.

    A terminal shows nothing of what lasts less than `after_s`. A thread draws, so that also a stage that tells nothing
    of itself (compiling) is seen to be alive.
    """

    def __init__(
        self, file: TextIO, label: str = "Starting", clock: Callable[[], float] = monotonic, after_s: float = 0.0
    ) -> None:
        self._file = file
        self._clock = clock
        self._from_s = clock() + after_s
        self._lines = RedrawnLines(file) if can_redraw(file) else notebook_line()
        self._lock = Lock()
        self._ended = Event()
        self._thread = Thread(target=self._keep_drawing, name="progress", daemon=True)
        self._stage = _Work(label, 0.0, clock())

    def __enter__(self) -> "ProgressLine":
        self._show()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()
        if self._lines is not None:
            self._lines.erase()

    def on_stage(self, label: str, total_bytes: int) -> None:
        self._begin(_Work(label, float(total_bytes), self._clock()))

    def on_bytes(self, nbytes: int) -> None:
        with self._lock:
            self._stage.add(nbytes, self._clock())
            is_done = self._stage.done >= self._stage.total > 0
        if is_done:
            self._show()  # the end is seen, however short the stage was

    def on_share(self, label: str, share: float) -> None:
        """Go on with `label`, when this share of everything is done: from 0 to 1."""
        stage = self._stage
        if not stage.is_share:
            began_s = stage.began_s if stage.label == label else self._clock()
            stage = _Work(label, 1.0, began_s, is_share=True)
        stage.label = label
        stage.add(share - stage.done, self._clock())
        self._begin(stage)

    def _begin(self, stage: "_Work") -> None:
        with self._lock:
            self._stage = stage
        self._show()

    def _keep_drawing(self) -> None:
        if self._lines is not None:
            while not self._ended.wait(_DRAW_EVERY_S):
                self._show()
            return
        wait_s = _FIRST_PLAIN_S
        while not self._ended.wait(wait_s):
            with suppress(OSError, ValueError):  # nobody reads it any more
                self._file.write(self._stage.line(self._clock()) + "\n")
                self._file.flush()
            wait_s = _PLAIN_EVERY_S

    def _show(self) -> None:
        if self._lines is None or self._clock() < self._from_s:
            return
        columns, _ = terminal_size(self._file)
        with self._lock:
            if not self._ended.is_set():
                self._lines.draw([self._stage.line(self._clock(), columns - 1)])


class _Work:
    """The part of a stage that is done, and since when."""

    def __init__(self, label: str, total: float, now_s: float, is_share: bool = False) -> None:
        self.label = printable(label)
        self.total = total
        self.is_share = is_share  # of everything, instead of bytes
        self.done = 0.0
        self.began_s = now_s
        self._samples = deque([(now_s, 0.0)])

    def add(self, more: float, now_s: float) -> None:
        self.done += more
        if now_s - self._samples[-1][0] >= _DRAW_EVERY_S:
            self._samples.append((now_s, self.done))
            # Shares are of stages of any length, so that only their mean rate tells anything.
            while not self.is_share and now_s - self._samples[0][0] > _RATE_OVER_S and len(self._samples) > 2:
                self._samples.popleft()

    def line(self, now_s: float, width: int | None = None) -> str:
        """The stage in at most `width` cells, what matters least left out; None: in words alone, all of them."""
        words = [text for text in (self._amount(), self._left(now_s), self._rate(now_s)) if text]
        if width is None:
            return " · ".join([self.label, *words])
        while words and len(" · ".join([self.label, *words])) > width:
            del words[-1]
        shown = " · ".join(words)
        cells = min(width - len(self.label) - len(shown) - 2, _MOST_BAR_CELLS)
        if self.total and cells >= _FEWEST_BAR_CELLS:
            return f"{self.label} {self._bar(cells)} {shown}"
        if words or len(self.label) <= width:
            return " · ".join([self.label, *words])
        return self.label.partition(" (")[0][:width]

    def _bar(self, cells: int) -> str:
        full = round(min(self.done / self.total, 1.0) * cells)
        return "━" * full + "┄" * (cells - full)

    def _amount(self) -> str:
        if not self.total:
            return ""
        if self.is_share:
            return f"{min(self.done, 1.0):.0%}"
        return f"{format_bytes(self.done)} of {format_bytes(self.total)}"

    def _left(self, now_s: float) -> str:
        """The time left, or where nobody knows it, the time that has gone by."""
        if not self.total:
            passed_s = now_s - self.began_s
            return duration(passed_s) if passed_s >= 1 else ""
        rate = self._per_s(now_s)
        return f"{duration((self.total - self.done) / rate)} left" if rate and self.done < self.total else ""

    def _rate(self, now_s: float) -> str:
        rate = self._per_s(now_s)
        return f"{format_bytes(rate)}/s" if rate and self.total and not self.is_share else ""

    def _per_s(self, now_s: float) -> float:
        first_s, first = self._samples[0]
        passed_s = now_s - first_s
        return (self.done - first) / passed_s if passed_s >= 1 else 0.0


def duration(seconds: float) -> str:
    """A time for people who wait: "8 s", "3 min", "2 h 10 min"."""
    if seconds < 59.5:
        return f"{max(seconds, 1):.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
