"""Settings files: TOML whose keys are the long flags of the command, and the presets that come with the package.

model = "models/mistral-7b"     # relative to this file
cuda = 6
max-tokens = 500
"""

import difflib
import json
import re
import tomllib
import types
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

from hybrid.errors import UsageError
from hybrid.show.console import emit
from hybrid.shown import show
from hybrid.source.folder import hub_name
from offload.small_files import UnreadableFileError, read_small_text

_PACKAGED = Path(__file__).parents[1] / "configs"  # in a wheel
_CHECKOUT = Path(__file__).parents[2] / "configs"  # in a checkout
_MAX_BYTES = 1 << 20
_ABSURD = 1 << 1000  # what floats cannot hold, nor messages show
_NOT_SETTINGS = ("prompt", "version", "config", "print_config")
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_TYPE_NAMES = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a string",
    Path: "a path",
    list: "a list of strings",
}


def settings_of(flags: type) -> dict[str, type]:
    """The settings among the `flags` of a command by their long flags, and the type of each: "max-tokens" and int."""
    return {_flag(name, hint): _plain(hint) for name, hint in _settings(flags).items()}


def print_settings(flags: object) -> int:
    """Print the settings that are in force among the `flags` of a command; gives the exit code."""
    hints = _settings(type(flags))
    emit(print_config({_flag(name, hint): getattr(flags, name) for name, hint in hints.items()}))
    return 0


def presets() -> list[str]:
    """The names that `find_settings` knows."""
    return sorted(path.stem for path in _preset_folder().glob("*.toml"))


def find_settings(name: str) -> Path:
    """A preset by name, or a file by its path when `name` ends in .toml. Raises UsageError, naming those there are."""
    if name.endswith(".toml"):
        return Path(name).expanduser()
    if name in presets():
        return _preset_folder() / f"{name}.toml"
    raise UsageError(f"--config {name}: not a settings file (.toml) and none of {', '.join(presets())}")


def read_settings(path: Path, known: Mapping[str, type]) -> dict[str, Any]:
    """The settings in a TOML file by their long flags, as `known` types them; see `settings_of`.

    A number may stand for a string (cuda = 6), and a whole number for any number. Relative paths are relative to
    the file. Raises UsageError for a file that cannot be read, a key that is not known and a value of another type.
    """
    text = _read(path)
    try:
        values = tomllib.loads(text)
    except RecursionError:
        raise UsageError(f"{show(path)}: not valid TOML: nested too deeply") from None
    except ValueError as error:  # numbers and dates that cannot be too
        raise UsageError(f"{show(path)}: not valid TOML: {error}") from None
    settings = {}
    for key, value in values.items():
        where = f"{show(path)}, line {_line_of(key, text)}"
        if key not in known:
            near = difflib.get_close_matches(key, known, 1) or difflib.get_close_matches(
                key.replace("_", "-"), known, 1
            )
            hint = f"did you mean {near[0]}?" if near else f"must be one of {', '.join(known)}"
            raise UsageError(f"{where}: there is no setting {show(key)}; {hint}")
        settings[key] = _located(key, _typed(value, known[key], f"{where}: {key}"), path)
    return settings


def print_config(values: Mapping[str, Any]) -> str:
    """Settings as the text of a file that `read_settings` reads back. Those that are None become comments."""
    lines = []
    for key, value in values.items():
        name = key if _BARE_KEY.fullmatch(key) else _quoted(key)
        lines.append(f"# {name} is decided at run time" if value is None else f"{name} = {_toml(key, value)}")
    return "\n".join(lines) + "\n"


def _settings(flags: type) -> dict[str, Any]:
    """The fields that are settings, and what they are annotated with."""
    hints = get_type_hints(flags, include_extras=True)
    return {name: hint for name, hint in hints.items() if name not in _NOT_SETTINGS}


def _preset_folder() -> Path:
    return _PACKAGED if _PACKAGED.is_dir() else _CHECKOUT


def _flag(name: str, hint: Any) -> str:
    """A parameter's long flag, without its hyphens: the one that is declared, else its name."""
    declared: list[Any] = []
    for info in getattr(hint, "__metadata__", ()):  # typer keeps the first of Option("--json", ...) as a default
        declared += [getattr(info, "default", None), *(getattr(info, "param_decls", None) or ())]
    long = next((text for text in declared if isinstance(text, str) and text.startswith("--")), name)
    return long.removeprefix("--").partition("/")[0].replace("_", "-")


def _plain(hint: Any) -> type:
    """`int` of `Annotated[int | None, ...]`, `list` of `list[str]`."""
    if get_origin(hint) is Annotated:
        hint = get_args(hint)[0]
    if get_origin(hint) in (types.UnionType, Union):
        hint = next(part for part in get_args(hint) if part is not types.NoneType)
    hint = get_origin(hint) or hint
    assert isinstance(hint, type), hint
    return hint


def _read(path: Path) -> str:
    try:
        return read_small_text(path, _MAX_BYTES).removeprefix("\ufeff")  # editors of Windows write it
    except UnreadableFileError as error:
        raise UsageError(f"{show(path)}: {error}") from None


def _line_of(key: str, text: str) -> int:
    """The line that sets a key, or opens a table of that name."""
    setter = re.compile(rf"""\s*\[*\s*["']?{re.escape(key)}["']?\s*[=.\]]""")
    return next((number for number, line in enumerate(text.splitlines(), 1) if setter.match(line)), 1)


def _typed(value: Any, wanted: type, where: str) -> Any:
    """The value as the type that the setting has."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if issubclass(wanted, StrEnum):
        choices = [str(choice) for choice in wanted]
        if value in choices:
            return wanted(value)
        raise UsageError(f"{where} is {_shown(value)}, must be {' or '.join(map(repr, choices))}")
    if isinstance(value, int) and abs(value) >= _ABSURD:
        raise UsageError(f"{where} is a number that no setting can be")
    if wanted is float and is_number:
        return float(value)
    if wanted is str and is_number:
        return str(value)
    if wanted is Path and isinstance(value, str):
        return Path(value)
    if type(value) is wanted and not (isinstance(value, list) and any(not isinstance(item, str) for item in value)):
        return value
    raise UsageError(f"{where} is {_shown(value)}, must be {_TYPE_NAMES.get(wanted, wanted.__name__)}")


def _located(key: str, value: Any, file: Path) -> Any:
    """Paths as seen from the file they stand in. A hub name is not a path, unless there is one of that name."""
    is_path = isinstance(value, Path) or key == "model" or (key == "machine" and str(value).endswith(".json"))
    if not is_path:
        return value
    given = Path(value).expanduser()
    beside = given if given.is_absolute() else file.absolute().parent / given
    if key == "model" and not given.is_absolute() and hub_name(str(value)) and not _is_there(beside):
        return value
    return type(value)(beside) if isinstance(value, str) else beside


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def _toml(key: str, value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, Path):  # as this run understands it, wherever the text is saved
        value = value.expanduser().absolute() if _is_there(value.expanduser()) else value
    if isinstance(value, str | Path):
        return _quoted(str(value))
    if isinstance(value, list | tuple):
        return f"[{', '.join(_toml(key, item) for item in value)}]"
    raise TypeError(f"{key}: {type(value).__name__} has no place in a settings file")


def _quoted(text: str) -> str:
    """A TOML string. JSON escapes as TOML does, but lets DEL pass."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UsageError(f"{text!a} is not Unicode text, so no settings file can hold it") from None
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _shown(value: Any) -> str:
    """A value as TOML would write it, shortened."""
    return str(value).lower() if isinstance(value, bool) else show(value)
