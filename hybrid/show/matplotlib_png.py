"""Draws pictures as PNG files; the only importer of matplotlib, and late."""

import os
import warnings
from pathlib import Path
from typing import Any

from hybrid.errors import InstallationError
from hybrid.show.plan_picture import COLOURS, ColumnShare, PlanPicture
from hybrid.show.timeline_picture import WIDTH_IN, TimelinePicture, Track, View

_DPI = 110
_FEWEST_COLUMNS = 30  # so that the title has room
_MOST_TICKS = 40
_DARK = frozenset(("#0072B2", "#D55E00", "#009E73"))  # colours on which text is white


def require_matplotlib(what_for: str) -> None:
    """Raises InstallationError, naming what asked for it, where matplotlib cannot be imported."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise InstallationError(
            f"{what_for}: pictures are drawn with matplotlib ({error}): pip install 'hybrid-run[plot]'"
        ) from None


def draw_plan(picture: PlanPicture, path: Path) -> None:
    """Draw a plan; `path` is replaced when all is written. Raises OSError."""
    columns = max(len(picture.layers) + 2.0 * len(picture.heads), _FEWEST_COLUMNS)
    width = min(0.34 * columns, 20.0) + 2.0
    rows = max(len(picture.rows), 1)
    height = min(max(0.62 * rows, 3.0), 18.0) + 1.9
    figure = _figure(width, height)
    axes = figure.add_axes((1.6 / width, 0.75 / height, 1 - 2.0 / width, 1 - 1.9 / height))
    for cell in picture.cells:
        _stack(axes, cell.column + 0.04, cell.row + 0.04, 0.92, 0.92, cell.parts)
    ticks = list(range(0, len(picture.layers), -(-len(picture.layers) // _MOST_TICKS) or 1))
    labels = [picture.layers[number] for number in ticks]
    positions = [number + 0.5 for number in ticks]
    for number, head in enumerate(picture.heads):
        left = len(picture.layers) + 0.8 + 2.0 * number
        _stack(axes, left, 0.04, 1.2, rows - 0.08, head.parts)
        positions.append(left + 0.6)
        labels.append(head.label)
    axes.set_xticks(positions, labels)
    axes.set_yticks([row + 0.5 for row in range(len(picture.rows))], picture.rows)
    axes.set_xlim(-0.1, columns + 0.1)
    axes.set_ylim(rows, 0)
    if picture.layers:
        axes.set_xlabel("layer", loc="left")
    _bare(axes)
    _head(figure, picture.title, picture.subtitle, height)
    _legend(figure, [(COLOURS[entry.place], entry.text) for entry in picture.legend], height)
    _save(figure, path)


def draw_timeline(picture: TimelinePicture, path: Path) -> None:
    """Draw a timeline; `path` is replaced when all is written. Raises OSError."""
    margin_in, rows_in = 2.4, 0.46 * len(picture.tracks) + 0.2
    view_in = rows_in + 0.95
    width, height = WIDTH_IN + margin_in + 0.3, view_in * len(picture.views) + 0.35
    figure = _figure(width, height)
    for number, view in enumerate(picture.views):
        bottom = height - 0.35 - view_in * number - 0.35 - rows_in
        axes = figure.add_axes((margin_in / width, bottom / height, WIDTH_IN / width, rows_in / height))
        _draw_view(axes, view, picture.tracks)
        axes.set_title(view.title, fontsize=10, loc="left")
        # The shares are of the whole step, and stand beside that.
        labels = [track.name if number else f"{track.name}\n{track.share:.1%} of the step" for track in picture.tracks]
        axes.set_yticks([row + 0.5 for row in range(len(labels))], labels, fontsize=9)
    figure.text(0.15 / width, 1 - 0.32 / height, picture.title, fontsize=12, weight="bold", parse_math=False)
    _save(figure, path)


def _draw_view(axes: Any, view: View, tracks: tuple[Track, ...]) -> None:
    for number, track in enumerate(tracks):
        bars = [bar for bar in view.bars if bar.track == number]
        spans = [(bar.start_ms, bar.duration_ms) for bar in bars]
        axes.broken_barh(spans, (number + 0.12, 0.76), color=track.colour, linewidth=0.6)
        for bar in bars:
            if bar.label:
                axes.text(
                    bar.start_ms + bar.duration_ms / 2,
                    number + 0.5,
                    bar.label,
                    ha="center",
                    va="center",
                    fontsize=8,
                    color="white" if track.colour in _DARK else "black",
                    clip_on=True,
                    parse_math=False,
                )
    axes.set_xlim(view.start_ms, view.stop_ms)
    axes.set_ylim(len(tracks), 0)
    axes.set_xlabel("ms since the step began")
    axes.grid(axis="x", color="#DDDDDD", linewidth=0.6)
    axes.set_axisbelow(True)
    _bare(axes)


def _stack(axes: Any, left: float, top: float, width: float, height: float, parts: tuple[ColumnShare, ...]) -> None:
    """A cell cut into its parts, the first at the bottom; the axis points down."""
    from matplotlib.patches import Rectangle

    bottom = top + height
    for part in parts:
        bottom -= part.share * height
        axes.add_patch(Rectangle((left, bottom), width, part.share * height, color=COLOURS[part.place], linewidth=0))


def _figure(width_in: float, height_in: float) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width_in, height_in), dpi=_DPI, facecolor="white")
    FigureCanvasAgg(figure)  # never a window, whatever the user's settings say
    return figure


def _head(figure: Any, title: str, subtitle: str, height_in: float) -> None:
    figure.text(0.01, 1 - 0.32 / height_in, title, fontsize=13, weight="bold", parse_math=False)
    figure.text(0.01, 1 - 0.62 / height_in, subtitle, fontsize=10, color="#444444", parse_math=False)


def _legend(figure: Any, entries: list[tuple[str, str]], height_in: float) -> None:
    from matplotlib.patches import Patch

    figure.legend(
        handles=[Patch(color=colour, label=text) for colour, text in entries],
        loc="upper left",
        bbox_to_anchor=(0.005, 1 - 0.68 / height_in),
        ncols=len(entries),
        frameon=False,
        fontsize=10,
        handlelength=1.2,
    )


def _bare(axes: Any) -> None:
    axes.tick_params(length=0)
    for side in ("top", "right", "left", "bottom"):
        axes.spines[side].set_visible(False)


def _save(figure: Any, path: Path) -> None:
    unfinished = path.with_name(path.name + ".part")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # a model's name may be in any script
        figure.savefig(unfinished, format="png")
    try:
        os.replace(unfinished, path)
    except OSError:
        unfinished.unlink()
        raise
