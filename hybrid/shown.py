"""Values from files, and paths, as they are shown in messages."""

from pathlib import Path


def show(value: object, limit: int = 80) -> str:
    """A value from a file, or a path, as short printable text on one line."""
    if isinstance(value, Path):
        text = str(value)
        return text if text.isprintable() else ascii(text)
    text = repr(value[: limit + 1] if isinstance(value, str | list) else value)
    text = text if text.isprintable() else ascii(text)
    return text if len(text) <= limit else text[: limit - 3] + "..."


def listed(names: list[str], limit: int = 4) -> str:
    """Names as "a, b, c and 5 more"."""
    shown = ", ".join(show(Path(name)) for name in names[:limit])
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"
