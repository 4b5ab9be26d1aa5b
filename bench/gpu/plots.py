"""Pictures of the results; needs matplotlib."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from bench.gpu.job import Json

_MEASURED, _PREDICTED, _GREY = "#0072B2", "#E69F00", "#999999"


def draw(results: Json, out: Path) -> str:
    """Draw what there is to draw; gives the names of the pictures, or why there is none."""
    pictures: dict[str, Callable[[Any, Json], bool]] = {"speed": _speed, "kernels": _kernels, "overlap": _overlap}
    names, notes = [], []
    for name, axes_of in pictures.items():
        figure = Figure(figsize=(11, 5.5), dpi=110, layout="constrained")
        FigureCanvasAgg(figure)
        try:
            drawn = axes_of(figure.add_subplot(), results["parts"][name]["found"])
        except (KeyError, ValueError) as error:  # a part that was ended has only some of its results
            notes.append(f"{name} not drawn ({error!r})")
            continue
        if drawn:
            title = results["parts"]["environment"]["found"].get("gpu", {}).get("name", "")
            figure.suptitle(
                f"{name}: a rehearsal, nothing was measured on a GPU" if results["modelled"] else f"{name}, {title}"
            )
            figure.savefig(out / f"{name}.png")
            names.append(f"{name}.png")
    return ", ".join([*names, *notes]) or "none: there is nothing to draw"


def _speed(axes: Any, found: Json) -> bool:
    runs = [run for run in found["runs"] if "error" not in run]
    names = list(dict.fromkeys((run["model"], run["dtype"]) for run in runs))
    for number, name in enumerate(names):
        mine = sorted((run for run in runs if (run["model"], run["dtype"]) == name), key=lambda run: run["share"])
        shares = [100 * run["share"] for run in mine]
        style = {"marker": "osD^"[number % 4]}
        label = " ".join(name)
        axes.plot(shares, [1 / r["decode_step_s"] for r in mine], color=_MEASURED, label=f"{label}, measured", **style)
        predicted = [1 / r["predicted_decode_step_s"] for r in mine]
        axes.plot(shares, predicted, color=_PREDICTED, linestyle="--", label=f"{label}, predicted", **style)
    axes.set_xlabel("VRAM budget beyond fixed costs, % of the Linears' bytes")
    axes.set_ylabel("decode, tokens/s")
    axes.set_yscale("log")
    axes.legend()
    return bool(runs)


def _kernels(axes: Any, found: Json) -> bool:
    readings = [reading for reading in found["readings"] if reading["rows"] == 1]
    labels = [f"{r['kernel']} {r['weights']} {r['matrix']}" for r in readings]
    axes.barh(range(len(readings)), [100 * r["roof_share"] for r in readings], color=_MEASURED)
    axes.set_yticks(range(len(labels)), labels, fontsize=7)
    axes.invert_yaxis()
    axes.axvline(100, color=_GREY, linewidth=1)
    axes.set_xlabel("one row of x: weight bytes a second, % of the roof")
    return bool(readings)


def _overlap(axes: Any, found: Json) -> bool:
    step_s = found["step_s"]
    left = 0.0
    for name, colour in (("resident", "#0072B2"), ("streamed", "#E69F00"), ("host", "#56B4E9")):
        axes.barh(0, 1e3 * step_s[name], left=1e3 * left, color=colour, label=f"{name}, alone")
        left += step_s[name]
    axes.barh(1, 1e3 * step_s["together"], color="#009E73", label="together")
    axes.set_yticks((0, 1), ("one after another", "together"))
    axes.set_xlabel("ms a step")
    axes.legend()
    return True
