"""The keys of a JSON object from a model folder, read with their bounds."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hybrid.errors import ModelConfigError, UnsupportedModelError
from hybrid.shown import show

REQUIRED: Any = object()


@dataclass(frozen=True)
class ConfigValues:
    """Values by their keys; `where` names the file in errors, all of which are one line with key and value."""

    table: Mapping[str, Any]
    where: str

    def error(self, key: str, must: str) -> ModelConfigError:
        """Say that a value is missing, or cannot be."""
        if key not in self.table:
            return ModelConfigError(f"{self.where}: {key} is missing, must be {must}")
        return ModelConfigError(f"{self.where}: {key} is {show(self.table[key])}, must be {must}")

    def unsupported(self, key: str, why: str) -> UnsupportedModelError:
        """Say that a value means something that we do not run."""
        return UnsupportedModelError(f"{self.where}: {key} is {show(self.table[key])}, {why}")

    def whole(self, key: str, most: int, default: Any = REQUIRED, null: int | None = None) -> int:
        """A number from 1 to `most`; `default` when the key is missing, `null` when it is null."""
        value = self.table.get(key, default)
        if value is None and null is not None:
            return null
        if not is_whole(value) or not 1 <= value <= most:
            raise self.error(key, f"a whole number from 1 to {most}")
        return int(value)

    def number(self, key: str, above: float, most: float, default: Any = REQUIRED) -> float:
        """A number greater than `above`, at most `most`."""
        value = self.table.get(key, default)
        if not _is_number(value) or not above < value <= most:
            raise self.error(key, f"a number above {above:g}, at most {most:g}")
        return float(value)

    def optional_number(self, key: str, above: float, most: float) -> float | None:
        """A number as in `number`; None when the key is missing or null."""
        return None if self.table.get(key) is None else self.number(key, above, most)

    def numbers(self, key: str, count: int, above: float, most: float) -> tuple[float, ...]:
        """A list of `count` numbers greater than `above`, at most `most`."""
        value = self.table.get(key)
        if (
            not isinstance(value, list)
            or len(value) != count
            or not all(_is_number(item) and above < item <= most for item in value)
        ):
            raise self.error(key, f"a list of {count} numbers above {above:g}, at most {most:g}")
        return tuple(float(item) for item in value)

    def flag(self, key: str, missing: bool = False) -> bool:
        """true or false; `missing` when the key is missing or null."""
        value = self.table.get(key)
        if value is not None and not isinstance(value, bool):
            raise self.error(key, "true or false")
        return missing if value is None else value

    def token_ids(self, key: str, vocab: int) -> tuple[int, ...]:
        """One id, several or none. Ids outside the vocabulary (placeholders in some files) are left out."""
        value = self.table.get(key)
        ids = [] if value is None else value if isinstance(value, list) else [value]
        if not all(is_whole(item) for item in ids):
            raise self.error(key, "a token id or a list of them")
        return tuple(dict.fromkeys(item for item in ids if 0 <= item < vocab))


def is_whole(value: object) -> bool:
    """Tell whether a JSON value is a whole number; true and false are not."""
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
