"""What the small JSON files of a model folder say about special tokens."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hybrid.errors import ModelFileError, TokenizerError
from hybrid.model.source import read_json, show

CONFIG = "tokenizer_config.json"
TOKENS_MAP = "special_tokens_map.json"
ADDED_TOKENS = "added_tokens.json"
GENERATION_CONFIG = "generation_config.json"

_MAX_ADDED = 100_000


@dataclass(frozen=True)
class AddedToken:
    """A token that was added to a vocabulary after training. Special ones are never shown."""

    token_id: int
    text: str
    special: bool


@dataclass(frozen=True)
class SpecialTokens:
    """Names and ids of special tokens; a chat template sees the names as `bos_token`, `eos_token` and so on.

    `names` has the roles that a file speaks of; a role that a file sets to null is there with "". `add_bos` is
    None when no file says whether texts begin with bos.
    """

    names: Mapping[str, str] = field(default_factory=dict)
    added: tuple[AddedToken, ...] = ()
    add_bos: bool | None = None
    bos_id: int | None = None  # of generation_config.json, for folders that do not name the token
    eos_id: int | None = None

    def in_templates(self) -> dict[str, str]:
        """The names that a chat template gets."""
        return {role: name for role, name in self.names.items() if name}


def read_special_tokens(folder: Path) -> SpecialTokens:
    """Special tokens as `tokenizer_config.json`, then `special_tokens_map.json` name them.

    Ids out of `generation_config.json` are for folders that name none. A file that is absent says nothing; raises
    TokenizerError for one that cannot be read or holds something else than tokens.
    """
    config = _read(folder / CONFIG)
    generation = _read(folder / GENERATION_CONFIG)
    add_bos = config.get("add_bos_token")
    return SpecialTokens(
        names={**_names(_read(folder / TOKENS_MAP)), **_names(config)},
        added=_added(folder, config),
        add_bos=add_bos if isinstance(add_bos, bool) else None,
        bos_id=_first_id(generation.get("bos_token_id")),
        eos_id=_first_id(generation.get("eos_token_id")),
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        return read_json(path) if path.is_file() else {}
    except ModelFileError as error:
        raise TokenizerError(str(error)) from None


def _names(content: Mapping[str, Any]) -> dict[str, str]:
    """`bos_token` and the like: a name, or an object with the name as `content`."""
    names = {}
    for role, value in content.items():
        if role.endswith("_token") and not role.startswith("add_"):
            name = value.get("content") if isinstance(value, dict) else value
            if isinstance(name, str) or name is None:
                names[role] = name or ""
    return names


def _added(folder: Path, config: Mapping[str, Any]) -> tuple[AddedToken, ...]:
    """Added tokens by id. Those that only `added_tokens.json` has count as special: it does not say."""
    found: dict[int, AddedToken] = {}
    for text, token_id in _read(folder / ADDED_TOKENS).items():
        if isinstance(token_id, int) and text:
            found[token_id] = AddedToken(token_id, text, special=True)
    listed = config.get("added_tokens_decoder")
    for key, value in (listed if isinstance(listed, dict) else {}).items():
        name = value.get("content") if isinstance(value, dict) else None
        if not (key.isdecimal() and len(key) < 10 and isinstance(name, str) and name):
            raise TokenizerError(f"{folder / CONFIG}: added_tokens_decoder[{show(key)}] is {show(value)}, not a token")
        found[int(key)] = AddedToken(int(key), name, bool(value.get("special")))
    if len(found) > _MAX_ADDED or any(not 0 <= token_id < 2**31 for token_id in found):
        raise TokenizerError(f"{folder}: {len(found)} added tokens; at most {_MAX_ADDED}, with ids from 0 to 2**31")
    return tuple(found[token_id] for token_id in sorted(found))


def _first_id(value: Any) -> int | None:
    """An id, or the first of a list of them."""
    if isinstance(value, list) and value:
        value = value[0]
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None
