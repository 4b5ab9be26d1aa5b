"""The recommendations of generation_config.json or genai_config.json, which flags go before."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hybrid.errors import ModelConfigError, UsageError
from hybrid.shown import show
from hybrid.source.folder import GENERATION_CONFIG, read_json
from hybrid.text.model_files import home_of
from hybrid.text.sampling import SamplingSettings

GENAI_CONFIG = "genai_config.json"  # onnxruntime-genai's, beside models that its builder exports
_RECOMMENDED = ("temperature", "top_k", "top_p", "min_p", "typical_p", "repetition_penalty")
_ABSURD = 1e300  # whole numbers in JSON may be longer than floats can hold


@dataclass(frozen=True)
class GenerationDefaults:
    """The end ids of a model and the sampling that its makers recommend; greedy where they recommend none.

    Both are those of generation_config.json, else of genai_config.json.

    A `top_k` that the file does not name keeps all tokens; transformers took 50 there.
    """

    end_ids: tuple[int, ...] = ()
    sampling: SamplingSettings = field(default_factory=SamplingSettings)
    notes: tuple[str, ...] = ()  # a line for each recommendation that cannot be followed


def read_generation_defaults(folder: Path) -> GenerationDefaults:
    """The defaults of a model folder, or of the folder that a model file lies in; plain ones without a file.

    `do_sample` that is false or absent means greedy, whatever temperature stands beside it, as in transformers; the
    repetition penalty counts in both cases. A recommendation that cannot be followed is left out, with a note. Raises
    ModelFileError or ModelConfigError for a file, or ends, that cannot be read.
    """
    home = home_of(folder)
    genai = _content(home / GENAI_CONFIG)
    ends = _end_ids(home / GENAI_CONFIG, _section(genai, "model"))
    path = home / GENERATION_CONFIG
    if not path.is_file():
        return _recommended(GENAI_CONFIG, _section(genai, "search"), ends)
    content = _content(path)
    return _recommended(GENERATION_CONFIG, content, _end_ids(path, content) or ends)


def _recommended(file: str, content: Mapping[str, Any], ends: tuple[int, ...]) -> GenerationDefaults:
    """The sampling that the content of a file recommends."""
    draws = content.get("do_sample") is True
    # 1 is what transformers takes where the file is silent.
    settings: dict[str, Any] = {"temperature": 1.0 if draws else 0.0}
    notes = []
    for name in _RECOMMENDED:
        value = content.get(name)
        if value is None or (name == "temperature" and not draws):
            continue
        try:
            settings |= _usable(name, value)
        except UsageError as error:
            notes.append(f"{file} recommends {name} {show(value)}, which is not followed: {error}")
    return GenerationDefaults(ends, SamplingSettings(**settings), tuple(notes))


def _usable(name: str, value: Any) -> dict[str, float]:
    """A recommendation as a setting. Raises UsageError when it cannot be one."""
    whole = name == "top_k"
    if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
        raise UsageError(f"it must be a {'whole ' if whole else ''}number")
    value = max(value, 0) if whole else float(min(max(value, -_ABSURD), _ABSURD))  # some files write top_k -1 for all
    SamplingSettings(**{name: value})
    return {name: value}


def merge_sampling(defaults: SamplingSettings, **flags: Any) -> SamplingSettings:
    """Sampling settings out of flags, by the names of `SamplingSettings`; what is None was not given.

    A flag wins over the model's default. A flag that shapes what is drawn does not by itself make a greedy model
    draw: that takes a temperature.
    """
    return replace(defaults, **{name: value for name, value in flags.items() if value is not None})


def _end_ids(path: Path, content: Mapping[str, Any]) -> tuple[int, ...]:
    value = content.get("eos_token_id")
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if any(isinstance(token_id, bool) or not isinstance(token_id, int) for token_id in ids) or len(ids) > 1000:
        raise ModelConfigError(f"{path}: eos_token_id is {show(value)}, must be a token id or a list of them")
    return tuple(token_id for token_id in ids if token_id >= 0)


def _content(path: Path) -> Mapping[str, Any]:
    return read_json(path) if path.is_file() else {}


def _section(content: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = content.get(key)
    return value if isinstance(value, dict) else {}
