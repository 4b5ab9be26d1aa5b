"""Refuses a run that can be known to be wrong before anything that takes long is imported."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hybrid.loading.settings import RunSettings


def check_early(
    settings: RunSettings,
    sampling: Mapping[str, Any] | None = None,
    stop: Sequence[str] = (),
    template: str | None = None,
) -> None:
    """Refuse settings and `sampling` flags that cannot be. A model that has to be looked up is not looked for.

    Raises OffloadError.
    """
    from hybrid.source.folder import find_model, hub_name, is_there, real_file

    path = Path(settings.model).expanduser()
    if is_there(path) or hub_name(str(settings.model)) is None:
        find_model(path)
    if template is not None and template.endswith(".jinja"):
        real_file(Path(template).expanduser())
    _check_placement(settings)
    if sampling is not None:
        from hybrid.text.generation_defaults import merge_sampling
        from hybrid.text.sampling import SamplingSettings
        from hybrid.text.stop_words import StopWords

        merge_sampling(SamplingSettings(), **sampling)
        StopWords(stop)


def _check_placement(settings: RunSettings) -> None:
    from hybrid.loading.quantisation import activations_asked, host_format_of
    from hybrid.loading.target import wanted_device

    assert settings.ram_budget
    wanted_device(settings)
    host_format_of(settings.host_dtype)
    activations_asked(settings.activations)
