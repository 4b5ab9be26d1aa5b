"""generation_config.json, and flags before it."""

import json
from pathlib import Path
from typing import Any

import pytest

from hybrid.errors import ModelConfigError, ModelFileError
from hybrid.text.generation_defaults import GenerationDefaults, merge_sampling, read_generation_defaults
from hybrid.text.sampling import SamplingSettings


def read(folder: Path, content: dict[str, Any]) -> GenerationDefaults:
    (folder / "generation_config.json").write_text(json.dumps(content))
    return read_generation_defaults(folder)


def test_a_folder_without_the_file_is_greedy(tmp_path: Path) -> None:
    assert read_generation_defaults(tmp_path) == GenerationDefaults((), SamplingSettings())
    assert read(tmp_path, {}) == GenerationDefaults((), SamplingSettings())


def test_a_chat_models_file(tmp_path: Path) -> None:
    content = {
        "bos_token_id": 151643,
        "do_sample": True,
        "eos_token_id": [151645, 151643],
        "repetition_penalty": 1.05,
        "temperature": 0.7,
        "top_p": 0.8,
        "top_k": 20,
    }
    defaults = read(tmp_path, content)
    assert defaults.end_ids == (151645, 151643)
    assert defaults.sampling == SamplingSettings(0.7, 20, 0.8, repetition_penalty=1.05)
    (tmp_path / "model.onnx").touch()
    assert read_generation_defaults(tmp_path / "model.onnx") == defaults


def test_sampling_that_is_not_asked_for_is_greedy(tmp_path: Path) -> None:
    assert read(tmp_path, {"temperature": 0.6, "top_p": 0.9}).sampling == SamplingSettings(0.0, top_p=0.9)
    assert read(tmp_path, {"do_sample": False, "temperature": 0.6}).sampling.temperature == 0
    assert read(tmp_path, {"do_sample": True, "top_k": None, "eos_token_id": 2}) == GenerationDefaults(
        (2,), SamplingSettings(1.0)
    )


def test_flags_win(tmp_path: Path) -> None:
    defaults = read(tmp_path, {"do_sample": True, "temperature": 0.6, "top_p": 0.9}).sampling
    assert merge_sampling(defaults) == defaults
    assert merge_sampling(defaults, temperature=None, top_k=None, seed=None) == defaults
    assert merge_sampling(defaults, temperature=0.0).temperature == 0
    assert merge_sampling(defaults, top_p=1.0, seed=3) == SamplingSettings(0.6, seed=3)


@pytest.mark.parametrize(
    ("content", "sampling"),
    [
        ({"temperature": "hot", "top_k": 5}, SamplingSettings(1.0, 5)),
        ({"temperature": -1}, SamplingSettings(1.0)),
        ({"temperature": 10**400}, SamplingSettings(1e300)),
        ({"temperature": float("nan")}, SamplingSettings(1.0)),
        ({"top_p": 0, "temperature": 0.5}, SamplingSettings(0.5)),
        ({"top_p": True}, SamplingSettings(1.0)),
        ({"top_p": 7}, SamplingSettings(1.0)),
        ({"top_k": 1.5}, SamplingSettings(1.0)),
        ({"top_k": [5]}, SamplingSettings(1.0)),
        ({"top_k": -1}, SamplingSettings(1.0)),
        ({"top_k": 10**30}, SamplingSettings(1.0, 10**30)),
        ({"min_p": -0.1}, SamplingSettings(1.0)),
        ({"typical_p": 0.0}, SamplingSettings(1.0)),
        ({"repetition_penalty": 0}, SamplingSettings(1.0)),
        ({"repetition_penalty": -(10**400)}, SamplingSettings(1.0)),
        ({"repetition_penalty": 1e-300}, SamplingSettings(1.0)),
    ],
)
def test_a_recommendation_that_cannot_be_followed_is_a_note(
    tmp_path: Path, content: dict[str, Any], sampling: SamplingSettings
) -> None:
    defaults = read(tmp_path, {"do_sample": True, **content})
    assert defaults.sampling == sampling
    followed = sampling != SamplingSettings(1.0) and len(content) == 1
    assert len(defaults.notes) == (0 if followed or content == {"top_k": -1} else 1)
    assert all(note.isprintable() and len(note) < 300 for note in defaults.notes)
    assert merge_sampling(defaults.sampling, temperature=0.3, top_k=7, top_p=0.5).temperature == 0.3


def genai(folder: Path, search: object) -> GenerationDefaults:
    content = {"model": {"eos_token_id": [2, 7]}, "search": search}
    (folder / "genai_config.json").write_text(json.dumps(content))
    return read_generation_defaults(folder)


def test_the_search_section_of_onnxruntime_genai(tmp_path: Path) -> None:
    search = {
        "diversity_penalty": 0.0,
        "do_sample": True,
        "early_stopping": True,
        "length_penalty": 1.0,
        "max_length": 256,
        "num_beams": 1,
        "past_present_share_buffer": True,
        "repetition_penalty": 1.1,
        "temperature": 0.6,
        "top_k": 40,
        "top_p": 0.9,
    }
    defaults = genai(tmp_path, search)
    assert defaults == GenerationDefaults((2, 7), SamplingSettings(0.6, 40, 0.9, repetition_penalty=1.1))
    assert merge_sampling(defaults.sampling, top_p=0.5).top_p == 0.5
    assert genai(tmp_path, {**search, "do_sample": False}).sampling.temperature == 0
    unusable = genai(tmp_path, {**search, "top_p": 7})
    assert unusable.sampling == SamplingSettings(0.6, 40, repetition_penalty=1.1)
    assert unusable.notes[0].startswith("genai_config.json recommends top_p 7")
    assert genai(tmp_path, [1]) == GenerationDefaults((2, 7), SamplingSettings())


def test_generation_config_wins_over_genai_config(tmp_path: Path) -> None:
    genai(tmp_path, {"do_sample": True, "temperature": 0.6, "top_k": 40})
    assert read(tmp_path, {"do_sample": True, "top_p": 0.5}) == GenerationDefaults(
        (2, 7), SamplingSettings(1.0, 0, 0.5)
    )


@pytest.mark.parametrize("ends", ["</s>", [2, None]])
def test_ends_that_cannot_be(tmp_path: Path, ends: object) -> None:
    with pytest.raises(ModelConfigError, match="must be a token id or a list"):
        read(tmp_path, {"eos_token_id": ends})


def test_a_broken_file(tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text("{")
    with pytest.raises(ModelFileError, match="not JSON"):
        read_generation_defaults(tmp_path)
