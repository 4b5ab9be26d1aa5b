"""Sliding windows of attention, layer by layer."""

from collections.abc import Callable

from hybrid.families.config.values import ConfigValues

Windows = tuple[int | None, ...]  # the tokens that a query of each layer sees, itself included; None for all before it
USUAL_WINDOW = 4096


def no_windows(values: ConfigValues, layers: int, context_limit: int) -> Windows:
    """Give the windows of a model that has none. Raises UnsupportedModelError for a config that has some."""
    if values.table.get("sliding_window") is not None and _window(values) < context_limit:
        # transformers cuts the cache of such a model, and not its prompt: what it gives depends on how it is asked.
        family = values.table["model_type"]
        raise values.unsupported("sliding_window", f"which {family} models here do not have")
    return sliding_windows(values, layers, None, lambda layer: False)


def optional_window(values: ConfigValues, missing: int | None = USUAL_WINDOW) -> int | None:
    """Read `sliding_window`; null means none."""
    return None if values.table.get("sliding_window", missing) is None else _window(values)


def sliding_windows(values: ConfigValues, layers: int, window: int | None, slides: Callable[[int], bool]) -> Windows:
    """Give `window` to the layers that `layer_types` names, or, where the file has none, to those that `slides` does.

    Raises UnsupportedModelError where `layer_types` has layers that slide and there is no window.
    """
    kinds = _layer_types(values, layers)
    if window is None and "sliding_attention" in (kinds or ()):
        raise values.unsupported("layer_types", "but there is no sliding window for them")
    if window is None:
        return (None,) * layers
    if kinds is None:
        return tuple(window if slides(layer) else None for layer in range(layers))
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)


def _window(values: ConfigValues) -> int:
    return values.whole("sliding_window", 2**28, USUAL_WINDOW)


def _layer_types(values: ConfigValues, layers: int) -> list[str] | None:
    """Read the kind of attention of every layer, when the file says it."""
    kinds = values.table.get("layer_types")
    if kinds is None:
        return None
    if isinstance(kinds, list):
        kinds = ["full_attention" if kind == "attention" else kind for kind in kinds]  # its older name
    known = ("full_attention", "sliding_attention")
    if not isinstance(kinds, list) or len(kinds) != layers or not all(kind in known for kind in kinds):
        raise values.error("layer_types", f"a list of {layers}, each one of {', '.join(known)}")
    return kinds
