"""Reads the small JSON files of a model folder on tokens: roles, added ones, and how texts are read."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hybrid.errors import ModelFileError, TokenizerError
from hybrid.shown import show
from hybrid.source.folder import read_json
from hybrid.text.added_tokens import AddedToken, read_added_token

MODEL_CONFIG = "config.json"
CONFIG = "tokenizer_config.json"
TOKENS_MAP = "special_tokens_map.json"
ADDED_TOKENS = "added_tokens.json"
GENERATION_CONFIG = "generation_config.json"

_MAX_ADDED = 100_000
_STANDARD_ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_EXTRA = ("extra_special_tokens", "additional_special_tokens")  # the new name and the old


@dataclass(frozen=True)
class SpecialTokens:
    """Tokens as a folder's files describe them, beside its vocabulary.

    `names` has the roles that a file speaks of, which a chat template sees as `bos_token`, `eos_token` and so on; a
    role that a file sets to null is there with "". `added` are the tokens with ids, `roles` and `extra` those that
    files name by role or in a list. `flags` are the settings of tokenizer_config.json that are true or false.
    """

    names: Mapping[str, str] = field(default_factory=dict)
    added: tuple[AddedToken, ...] = ()
    roles: tuple[AddedToken, ...] = ()
    extra: tuple[AddedToken, ...] = ()
    only_config: bool = False  # tokenizer_config.json lists the added tokens; other lists do not count
    flags: Mapping[str, bool] = field(default_factory=dict)
    tokenizer_class: str = ""
    model_type: str = ""
    bos_id: int | None = None  # of generation_config.json, for folders that do not name the token
    eos_id: int | None = None
    notes: tuple[str, ...] = ()

    def in_templates(self) -> dict[str, str]:
        """The names that a chat template gets."""
        return {role: name for role, name in self.names.items() if name}


def read_special_tokens(folder: Path) -> SpecialTokens:
    """Tokens as `tokenizer_config.json`, `special_tokens_map.json` and `added_tokens.json` describe them.

    As in transformers: where the first has `added_tokens_decoder`, the others do not count; else the second wins over
    the first. Ids out of `generation_config.json` are for folders that name none. A file that is absent says
    nothing; raises TokenizerError for one that cannot be read or holds something else than tokens.
    """
    config, tokens_map = _read(folder / CONFIG), _read(folder / TOKENS_MAP)
    generation = _read(folder / GENERATION_CONFIG)
    only_config = "added_tokens_decoder" in config
    notes = _notes(folder, config, tokens_map)
    sources = [(config, CONFIG)] if only_config else [(config, CONFIG), (tokens_map, TOKENS_MAP)]
    roles: dict[str, AddedToken | None] = {}
    extra: list[AddedToken] = []
    for content, name in sources:
        roles |= _roles(content, str(folder / name))
        extra += _extra(content, str(folder / name))
    special_names = {token.text for token in (*roles.values(), *extra) if token is not None}
    added = _listed(folder, config) if only_config else _added(folder, special_names)
    declared = {token.text: token for token in added}
    known = {role: declared.get(token.text, token) for role, token in roles.items() if token is not None}
    in_order = sorted(known, key=lambda role: (*_STANDARD_ROLES, role).index(role))
    class_name, model_type = config.get("tokenizer_class"), _read(folder / MODEL_CONFIG).get("model_type")
    return SpecialTokens(
        names={role: token.text if token else "" for role, token in roles.items()},
        added=added,
        roles=tuple(known[role].as_special() for role in in_order),
        extra=tuple(extra),
        only_config=only_config,
        flags={name: value for name, value in config.items() if isinstance(value, bool)},
        tokenizer_class=class_name.removesuffix("Fast") if isinstance(class_name, str) else "",
        model_type=model_type if isinstance(model_type, str) else "",
        bos_id=_first_id(generation.get("bos_token_id")),
        eos_id=_first_id(generation.get("eos_token_id")),
        notes=notes,
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        return read_json(path) if path.is_file() else {}
    except ModelFileError as error:
        raise TokenizerError(str(error)) from None


def _roles(content: Mapping[str, Any], where: str) -> dict[str, AddedToken | None]:
    """`bos_token` and the like, and the named ones of `extra_special_tokens`; None for those that are set to null."""
    found = {}
    for role, value in content.items():
        if not role.endswith("_token") or (role.startswith("add_") and isinstance(value, bool)):
            continue
        if role in _STANDARD_ROLES or isinstance(value, str | dict):
            found[role] = read_added_token(value, f"{where}: {role}") if value not in (None, "") else None
    named = content.get("extra_special_tokens")
    for role, value in named.items() if isinstance(named, dict) else ():
        found[role] = read_added_token(value, f"{where}: extra_special_tokens[{show(role)}]")
    return found


def _extra(content: Mapping[str, Any], where: str) -> list[AddedToken]:
    """Special tokens without a role."""
    key = next((key for key in _EXTRA if content.get(key)), None)
    values = content[key] if key else []
    if isinstance(values, dict):
        return []  # those have roles
    if not isinstance(values, list):
        raise TokenizerError(f"{where}: {key} is {show(values)}, must be a list of tokens")
    return [read_added_token(value, f"{where}: {key}[{index}]") for index, value in enumerate(values)]


def _listed(folder: Path, config: Mapping[str, Any]) -> tuple[AddedToken, ...]:
    """The tokens of `added_tokens_decoder`, by id."""
    listed = config["added_tokens_decoder"]
    where = f"{folder / CONFIG}: added_tokens_decoder"
    if not isinstance(listed, dict):
        raise TokenizerError(f"{where} is {show(listed)}, must be an object of ids and tokens")
    found: dict[int, AddedToken] = {}
    for key, value in listed.items():
        if not (key.isascii() and key.isdecimal() and len(key) < 10) or isinstance(value, str):
            raise TokenizerError(f"{where}[{show(key)}] is {show(value)}, not a token")
        token = read_added_token(value, f"{where}[{show(key)}]", special=False)
        found[int(key)] = replace(token, token_id=int(key))
    return _checked(folder, found)


def _added(folder: Path, special_names: set[str]) -> tuple[AddedToken, ...]:
    """The tokens of `added_tokens.json`, by id; those that have a role are special."""
    found = {}
    for text, token_id in _read(folder / ADDED_TOKENS).items():
        if isinstance(token_id, bool) or not isinstance(token_id, int) or not text:
            raise TokenizerError(f"{folder / ADDED_TOKENS}: {show(text)} has id {show(token_id)}, must be a number")
        special = text in special_names
        found[token_id] = AddedToken(text, special=special, normalized=not special, token_id=token_id)
    return _checked(folder, found)


def _checked(folder: Path, found: Mapping[int, AddedToken]) -> tuple[AddedToken, ...]:
    if len(found) > _MAX_ADDED or any(not 0 <= token_id < 2**31 for token_id in found):
        raise TokenizerError(f"{folder}: {len(found)} added tokens; at most {_MAX_ADDED}, with ids from 0 to 2**31")
    return tuple(found[token_id] for token_id in sorted(found))


def _notes(folder: Path, config: Mapping[str, Any], tokens_map: Mapping[str, Any]) -> tuple[str, ...]:
    """List the disagreements of the files with the one that counts."""
    only_config = "added_tokens_decoder" in config
    winner = f"{CONFIG} counts, for it has added_tokens_decoder" if only_config else f"{TOKENS_MAP} counts"
    ours, notes = _roles(config, CONFIG), []
    for role, token in _roles(tokens_map, TOKENS_MAP).items():
        own = ours.get(role)
        if token and token.text != (own.text if own else None) and (own or only_config):
            named = show(own.text) if own else "no token"
            notes.append(f"{role} is {show(token.text)} in {TOKENS_MAP}, {named} in {CONFIG}; {winner}")
    if only_config:
        listed = {token.text for token in _listed(folder, config)}
        missing = [token.text for token in _added(folder, set()) if token.text not in listed]
        notes += [f"{show(missing[0])} is in {ADDED_TOKENS}, not in {CONFIG}; {winner}"] if missing else []
    return tuple(notes)


def _first_id(value: Any) -> int | None:
    """An id, or the first of a list of them."""
    if isinstance(value, list) and value:
        value = value[0]
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31 else None
