"""Settings files: what is read, what is refused and where, and the presets."""

import math
import os
import tomllib
from enum import StrEnum
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybrid.cli.flags import PlanFlags, RunFlags
from hybrid.cli.settings_file import find_settings, presets, print_config, read_settings, settings_of
from hybrid.errors import UsageError
from hybrid.loading.planning import make_plan
from hybrid.loading.settings import RunSettings

RUN = settings_of(RunFlags)
NAMES = {"colab-t4", "gpu-6gb", "gpu-8gb", "gpu-12gb", "gpu-24gb", "cpu-only", "ram-2gb"}


class Form(StrEnum):
    JSON = "json"


KNOWN: dict[str, type] = {
    "model": Path,
    "cuda": str,
    "machine": str,
    "max-tokens": int,
    "temperature": float,
    "verbose": bool,
    "stats": Form,
    "stop": list,
}


def read(folder: Path, text: str, known: dict[str, type] = KNOWN) -> dict[str, Any]:
    path = folder / "settings.toml"
    path.write_text(text)
    return read_settings(path, known)


def test_keys_are_the_long_flags_of_the_command() -> None:
    assert RUN["max-tokens"] is int
    assert RUN["temperature"] is float
    assert RUN["cuda"] is str
    assert {"json", "verbose"} <= settings_of(PlanFlags).keys()
    assert not {"prompt", "version", "config"} & RUN.keys()


def test_each_type_is_read(tmp_path: Path) -> None:
    text = 'max-tokens = 5\ntemperature = 1\nverbose = true\nstats = "json"\nstop = ["a", "b"]\ncuda = "80%"\n'
    assert read(tmp_path, text) == {
        "max-tokens": 5,
        "temperature": 1.0,
        "verbose": True,
        "stats": Form.JSON,
        "stop": ["a", "b"],
        "cuda": "80%",
    }


@pytest.mark.parametrize(("value", "text"), [("6", "6"), ("2.5", "2.5"), ('"6GiB"', "6GiB")])
def test_a_budget_may_be_a_number(tmp_path: Path, value: str, text: str) -> None:
    assert read(tmp_path, f"cuda = {value}\n") == {"cuda": text}


@pytest.mark.parametrize(
    ("text", "line", "mentions"),
    [
        ("\nmax-token = 5\n", 2, ["'max-token'", "max-tokens"]),
        ("max_tokens = 5\n", 1, ["max-tokens"]),
        ("zzz = 5\n", 1, ["'zzz'", *KNOWN]),
        ("# run\n\n[run]\ncuda = 5\n", 3, ["'run'"]),
        ("cuda.gpu = 1\n", 1, ["cuda", "{'gpu': 1}"]),
        ('cuda = "1"\nmax-tokens = "5"\n', 2, ["max-tokens", "'5'"]),
        ("max-tokens = 5.5\n", 1, ["max-tokens", "5.5"]),
        ("max-tokens = true\n", 1, ["max-tokens", "true"]),
        ('temperature = "hot"\n', 1, ["temperature", "'hot'"]),
        ("temperature = false\n", 1, ["temperature", "false"]),
        ("verbose = 1\n", 1, ["verbose", "1"]),
        ("cuda = true\n", 1, ["cuda", "true"]),
        ("model = 1\n", 1, ["model", "1"]),
        ('stats = "xml"\n', 1, ["stats", "'xml'", "'json'"]),
        ("stop = [1]\n", 1, ["stop", "[1]"]),
        ("cuda = 1979-05-27\n", 1, ["cuda"]),
        ("cuda = \n", 1, ["TOML"]),
        ("cuda = 1\ncuda = 2\n", 2, ["TOML"]),
    ],
)
def test_what_cannot_be_is_refused_with_its_place(tmp_path: Path, text: str, line: int, mentions: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        read(tmp_path, text)
    for mention in (str(tmp_path / "settings.toml"), f"line {line}", *mentions):
        assert mention in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "latin.toml").write_bytes(b'model = "\xe9"')
    for name, said in (("none.toml", "No such file"), (".", "Is a directory"), ("latin.toml", "byte 9")):
        with pytest.raises(UsageError, match=said):
            read_settings(tmp_path / name, KNOWN)


def test_a_byte_order_mark_is_no_setting(tmp_path: Path) -> None:
    (tmp_path / "windows.toml").write_bytes(b"\xef\xbb\xbfmax-tokens = 3\r\n")
    assert read_settings(tmp_path / "windows.toml", KNOWN) == {"max-tokens": 3}


def test_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    assert read(tmp_path, 'model = "mistral"\n') == {"model": tmp_path / "mistral"}
    assert read(tmp_path, 'model = "../mistral"\n') == {"model": tmp_path / ".." / "mistral"}
    assert read(tmp_path, 'model = "/models/mistral"\n') == {"model": Path("/models/mistral")}
    assert read(tmp_path, 'machine = "mine.json"\n') == {"machine": str(tmp_path / "mine.json")}
    assert read(tmp_path, 'machine = "colab-t4"\n') == {"machine": "colab-t4"}


@pytest.mark.parametrize("kind", [str, Path])
def test_a_hub_name_is_no_path_unless_there_is_one(tmp_path: Path, kind: type) -> None:
    text = 'model = "org/name@main"\n'
    assert read(tmp_path, text, {"model": kind}) == {"model": kind("org/name@main")}
    (tmp_path / "org" / "name@main").mkdir(parents=True)
    assert read(tmp_path, text, {"model": kind}) == {"model": kind(tmp_path / "org" / "name@main")}


_VALUES = st.fixed_dictionaries(
    {},
    optional={
        "cuda": st.text(),
        "max-tokens": st.integers(-(2**63), 2**63 - 1),
        "temperature": st.floats(allow_nan=False),
        "verbose": st.booleans(),
        "stats": st.sampled_from(Form),
        "stop": st.lists(st.text()),
    },
)


@given(_VALUES)
def test_what_is_printed_reads_back(tmp_path_factory: pytest.TempPathFactory, values: dict[str, Any]) -> None:
    folder = tmp_path_factory.getbasetemp()
    path = folder / "printed.toml"
    path.write_bytes(print_config(values).encode())
    assert read_settings(path, KNOWN) == values


def test_printing_leaves_out_what_is_not_set_and_makes_paths_absolute(tmp_path: Path) -> None:
    (tmp_path / "mistral").mkdir()
    here = os.path.relpath(tmp_path / "mistral")
    text = print_config({"model": Path(here), "seed": None, "top-p": math.inf, "cuda": 'a"\\\n\x7f'})
    values = tomllib.loads(text)
    assert "seed" not in values
    assert "# seed is decided at run time\n" in text
    assert os.path.samefile(values["model"], tmp_path / "mistral")
    assert os.path.isabs(values["model"])
    assert values["cuda"] == 'a"\\\n\x7f'
    assert print_config({"model": Path("org/name")}) == 'model = "org/name"\n'
    with pytest.raises(UsageError, match="not Unicode"):
        print_config({"model": Path("\udcff")})


def test_presets_are_found_by_name_and_files_by_path() -> None:
    assert set(presets()) == NAMES
    assert find_settings("gpu-6gb").name == "gpu-6gb.toml"
    assert find_settings("gpu-6gb.toml") == Path("gpu-6gb.toml")
    with pytest.raises(UsageError, match=r"--config gpu-7gb: .*colab-t4"):
        find_settings("gpu-7gb")


@pytest.mark.parametrize("name", sorted(NAMES))
def test_each_preset_makes_a_plan(name: str) -> None:
    settings = read_settings(find_settings(name), RUN)
    asked = {key: settings[key] for key in ("cuda", "device", "machine", "ram") if key in settings}
    plan = make_plan(RunSettings(**asked, context_tokens=settings.get("context")))
    assert plan.placements
    assert (plan.budget_bytes > 0) == (name not in ("cpu-only", "ram-2gb"))
    assert "#" in find_settings(name).read_text()
