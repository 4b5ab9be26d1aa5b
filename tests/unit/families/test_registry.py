"""What is said of families in more than one place."""

from pathlib import Path

from hybrid.families.config.keys import READ
from hybrid.families.registry import FAMILIES

ROOT = Path(__file__).parents[3]


def letters(text: str) -> str:
    """Give the letters and digits of a text, all small."""
    return "".join(filter(str.isalnum, text.lower()))


def test_the_readme_and_the_changelog_name_them_all() -> None:
    for file in ("README.md", "CHANGELOG.md"):
        text = letters((ROOT / file).read_text())
        assert [name for name in FAMILIES if letters(name) not in text] == []


def test_no_class_is_of_two_families() -> None:
    classes = [letters(name) for family in FAMILIES.values() for name in family.classes]
    assert len({*classes}) == len(classes)
    assert all(letters(f"{name}forcausallm") in classes for name in FAMILIES)


def test_keys_of_a_family_are_its_own() -> None:
    assert not any(family.keys & READ for family in FAMILIES.values())
