"""The demo model's grammar: the recogniser accepts what the generator says, and little else."""

from __future__ import annotations

import importlib.util
import random
import sys
from pathlib import Path
from types import ModuleType

import pytest

GRAMMAR = Path(__file__).parents[3] / "tools" / "demo_model" / "grammar.py"


@pytest.fixture(scope="module")
def grammar() -> ModuleType:
    spec = importlib.util.spec_from_file_location("demo_grammar", GRAMMAR)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up by name
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def stories(grammar: ModuleType) -> list[str]:
    rng = random.Random(7)
    return [grammar.story(rng) for _ in range(120)]


@pytest.fixture(scope="module")
def sentences(grammar: ModuleType, stories: list[str]) -> list[str]:
    return [sentence for text in stories for sentence in grammar.split_sentences(text)]


def test_every_generated_sentence_parses(grammar: ModuleType, sentences: list[str]) -> None:
    assert [sentence for sentence in sentences if not grammar.parses(sentence)] == []


def test_every_generated_story_parses_whole(grammar: ModuleType, stories: list[str]) -> None:
    assert all(grammar.parses_story(text) for text in stories)


def test_stories_have_the_promised_shape(grammar: ModuleType, stories: list[str]) -> None:
    for text in stories:
        assert text.startswith("Once upon a time, ")
        assert text.isascii()
        assert 4 <= len(grammar.split_sentences(text)) <= 8
        assert " ".join(grammar.split_sentences(text)) == text


def test_the_same_seed_tells_the_same_stories(grammar: ModuleType) -> None:
    def tell(seed: int) -> list[str]:
        rng = random.Random(seed)
        return [grammar.story(rng) for _ in range(20)]

    assert tell(3) == tell(3)
    assert tell(3) != tell(4)


def test_stories_hardly_ever_repeat(grammar: ModuleType) -> None:
    rng = random.Random(5)
    assert len({grammar.story(rng) for _ in range(5000)}) >= 4990


def _drop(words: list[str], rng: random.Random) -> list[str]:
    at = rng.randrange(len(words))
    return words[:at] + words[at + 1 :]


def _swap(words: list[str], rng: random.Random) -> list[str]:
    at = rng.randrange(len(words) - 1)
    return [*words[:at], words[at + 1], words[at], *words[at + 2 :]]


def _double(words: list[str], rng: random.Random) -> list[str]:
    at = rng.randrange(len(words))
    return [*words[:at], words[at], *words[at:]]


@pytest.mark.parametrize("mutate", [_drop, _swap, _double])
def test_damaged_sentences_do_not_parse(grammar: ModuleType, sentences: list[str], mutate) -> None:
    rng = random.Random(11)
    damaged = [" ".join(mutate(sentence.split(), rng)) for sentence in sentences[::3]]  # parsing all takes seconds
    assert sum(map(grammar.parses, damaged)) <= 0.02 * len(damaged)


@pytest.mark.parametrize(
    ("sentence", "expected"),
    [
        ("Once upon a time, there was a small girl named Lily.", True),
        ("Once upon a time, there was a small boy named Lily.", False),
        ("Lily loved her red ball more than anything.", True),
        ("Lily loved his red ball more than anything.", False),
        ("Lily loved her red ball more than anything", False),
        ("Lily loved her red ball more than anything. ", False),
        ("lily loved her red ball more than anything.", False),
        ('"Try one more time," said a wise owl.', True),
        ('"Try one more time," said a wise.', False),
        ("", False),
        ("<open>", False),
    ],
)
def test_single_sentences(grammar: ModuleType, sentence: str, expected: bool) -> None:
    assert grammar.parses(sentence) is expected


def test_a_hero_who_changes_name_is_seen_in_the_whole_story_only(grammar: ModuleType) -> None:
    start = "Once upon a time, there lived a happy girl named Mia. Mia was brave, but she was afraid of the dark."
    night = "One night, {} woke up and began to cry. Her father came and sat by the bed."
    story = f'{start} {night} "I am not afraid now," said Mia. It was the best day of all.'
    assert grammar.parses_story(story.format("Mia"))
    assert not grammar.parses_story(story.format("Anna"))
    assert all(map(grammar.parses, grammar.split_sentences(story.format("Anna"))))


def test_sentences_split_outside_quotations_only(grammar: ModuleType) -> None:
    text = '"Look, a red rose!" said Ivy. Ivy said, "Come back!" They ran. Then'
    assert grammar.split_sentences(text) == [
        '"Look, a red rose!" said Ivy.',
        'Ivy said, "Come back!"',
        "They ran.",
        "Then",
    ]
