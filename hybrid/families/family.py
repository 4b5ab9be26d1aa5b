"""One architecture, as the registry knows it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from hybrid.families.blocks.builder import DecoderBuilder
from hybrid.families.config.decoder_config import DecoderConfig
from hybrid.families.config.values import ConfigValues


@dataclass(frozen=True)
class Family:
    """What a config.json of this `model_type` says, and how its decoder is written.

    `classes` are the names in `architectures` that are its own: one of another name may compute anything, whatever its
    tensors are called. `keys` are those of config.json that `read` reads besides `config.keys.READ`; `neutral` are
    values of other families' keys that say nothing new of this one.
    """

    model_type: str
    classes: tuple[str, ...]
    read: Callable[[ConfigValues], DecoderConfig]
    build: Callable[[DecoderBuilder], None]
    keys: frozenset[str] = frozenset()
    neutral: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
