"""What generation_config.json recommends, and how flags go before it."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hybrid.errors import ModelConfigError, UsageError
from hybrid.model.source import GENERATION_CONFIG, read_json, show
from hybrid.text.model_files import home_of
from hybrid.text.sampling import SamplingSettings

GENAI_CONFIG = "genai_config.json"  # onnxruntime-genai's, beside models that its builder exports


@dataclass(frozen=True)
class GenerationDefaults:
    """The end ids of a model and the sampling that its makers recommend; greedy where they recommend none.

    The ids are those of generation_config.json, else of genai_config.json.

    A `top_k` that the file does not name keeps all tokens; transformers took 50 there.
    """

    end_ids: tuple[int, ...] = ()
    sampling: SamplingSettings = field(default_factory=SamplingSettings)


def read_generation_defaults(folder: Path) -> GenerationDefaults:
    """The defaults of a model folder, or of the folder that a model file lies in; plain ones without the file.

    `do_sample` that is false or absent means greedy, whatever temperature stands beside it, as in transformers; the
    repetition penalty counts in both cases. Raises ModelFileError or ModelConfigError with the file, key and value.
    """
    home = home_of(folder)
    path = home / GENERATION_CONFIG
    if not path.is_file():
        return GenerationDefaults(_genai_end_ids(home))
    content = read_json(path)
    temperature = _number(path, content, "temperature", 1.0)  # what transformers takes where the file is silent
    try:
        sampling = SamplingSettings(
            temperature=temperature if content.get("do_sample") is True else 0.0,
            top_k=_top_k(path, content),
            top_p=_number(path, content, "top_p", 1.0),
            min_p=_number(path, content, "min_p", 0.0),
            typical_p=_number(path, content, "typical_p", 1.0),
            repetition_penalty=_number(path, content, "repetition_penalty", 1.0),
        )
    except UsageError as error:
        raise ModelConfigError(f"{path}: {error}") from None
    return GenerationDefaults(_end_ids(path, content) or _genai_end_ids(home), sampling)


def merge_sampling(defaults: SamplingSettings, **flags: Any) -> SamplingSettings:
    """Sampling settings out of flags, by the names of `SamplingSettings`; what is None was not given.

    A flag wins over the model's default. A flag that shapes what is drawn does not by itself make a greedy model
    draw: that takes a temperature.
    """
    return replace(defaults, **{name: value for name, value in flags.items() if value is not None})


def _number(path: Path, content: Mapping[str, Any], name: str, default: float) -> float:
    value = content.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ModelConfigError(f"{path}: {name} is {show(value)}, must be a number")
    return float(value)


def _top_k(path: Path, content: Mapping[str, Any]) -> int:
    value = content.get("top_k")
    if value is None:
        return 0
    if isinstance(value, bool) or not isinstance(value, int):
        raise ModelConfigError(f"{path}: top_k is {show(value)}, must be a whole number")
    return max(value, 0)  # some files write -1 for all


def _end_ids(path: Path, content: Mapping[str, Any]) -> tuple[int, ...]:
    value = content.get("eos_token_id")
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if any(isinstance(token_id, bool) or not isinstance(token_id, int) for token_id in ids) or len(ids) > 1000:
        raise ModelConfigError(f"{path}: eos_token_id is {show(value)}, must be a token id or a list of them")
    return tuple(token_id for token_id in ids if token_id >= 0)


def _genai_end_ids(home: Path) -> tuple[int, ...]:
    path = home / GENAI_CONFIG
    model = read_json(path).get("model") if path.is_file() else None
    return _end_ids(path, model) if isinstance(model, dict) else ()
