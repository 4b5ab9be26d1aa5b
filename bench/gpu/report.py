"""The results as Markdown."""

import importlib

from bench.gpu.job import Json

_REHEARSAL = (
    "Nothing here was measured on a GPU. The simulated device's own times are modelled; times of the wall clock "
    "around it are those of the simulation and say nothing, but that the kit works."
)


def report(results: Json) -> str:
    """A section for each part; what failed says so where its table would be."""
    title = "# GPU kit"
    if results["modelled"]:
        title += ": a rehearsal, modelled"
    lines = [title, "", f"{results['date']}, `{results['command']}`", ""]
    if results["modelled"]:
        lines += [_REHEARSAL, ""]
    for name, part in results["parts"].items():
        modelled = " (modelled)" if results["modelled"] else ""
        lines += [f"## {part['title']}{modelled}", ""]
        if part["status"] != "done":
            lines += [f"**{part['status']}**", ""]
        lines += [*_table(name, part["found"]), ""]
    if "pictures" in results:
        lines.append(f"Pictures: {results['pictures']}")
    return "\n".join(lines).rstrip() + "\n"


def _table(name: str, found: Json) -> list[str]:
    """Render what a part found, which is less than it expects when it was ended."""
    if not found:
        return ["nothing was found"]
    try:
        lines: list[str] = importlib.import_module(f"bench.gpu.{name}").markdown(found)
    except KeyError as missing:
        return [f"no table: {missing} was not reached; see gpu.json"]
    except ImportError as error:
        return [f"no table: {error}; see gpu.json"]
    return lines
