"""Machine profiles: those that ship load, and those that lie are named with file, key and value."""

import json
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from hybrid.machine.profiles import find_profile
from offload.errors import ProfileError
from offload.machine.profile import CpuRates, GpuRates, load_profile
from offload.spec.linear import WeightFormat

SHIPPED = sorted((Path(__file__).parents[3] / "configs" / "machines").glob("*.json"))


def content() -> dict[str, Any]:
    """A profile whose every number is different."""
    cpu = {field.name: 1000 + n for n, field in enumerate(fields(CpuRates))}
    cpu["multiply_bytes_per_s"] = {str(name): {"1": 300.5 + n, "128": 200.5 + n} for n, name in enumerate(WeightFormat)}
    gpu: dict[str, Any] = {field.name: 2000 + n for n, field in enumerate(fields(GpuRates))} | {"name": "Bench GPU"}
    gpu["flops_per_s"] = {"fp32": 2100.5, "fp16": 2101.5, "bf16": 2102.5}
    return {"name": "bench", "estimated": False, "cpu": cpu, "gpu": gpu}


def write(folder: Path, value: Any) -> Path:
    path = folder / "machine.json"
    path.write_text(json.dumps(value))
    return path


def refused(path: Path, *mentions: str) -> None:
    with pytest.raises(ProfileError) as caught:
        load_profile(path)
    message = str(caught.value)
    assert message.isprintable()
    for mention in (str(path), *mentions):
        assert mention in message


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_machines_load_and_are_plausible(path: Path) -> None:
    profile = load_profile(path)
    assert profile.name == path.stem
    assert find_profile(path.stem) == profile
    assert profile.estimated
    assert 1e9 < profile.cpu.attention_bytes_per_s <= profile.cpu.ram_bytes_per_s < 1e12
    assert 1e9 < profile.cpu.attention_flops_per_s < 1e13
    assert 1 << 32 <= profile.cpu.ram_bytes < 1 << 40
    if profile.gpu is not None:
        assert profile.gpu.bus_bytes_per_s < profile.gpu.vram_bytes_per_s < 1e13
        assert profile.gpu.context_bytes + profile.gpu.workspace_bytes < profile.gpu.vram_bytes < 1 << 40
        assert profile.gpu.launch_s < profile.gpu.round_trip_s < 1e-3


def test_there_are_shipped_machines() -> None:
    assert {"colab-t4", "generic-cpu", "generic-gpu"} <= {path.stem for path in SHIPPED}


def test_a_profile_survives_json(tmp_path: Path) -> None:
    profile = load_profile(write(tmp_path, content()))
    assert profile.to_json() == content()
    assert load_profile(write(tmp_path, profile.to_json())) == profile
    without = content() | {"gpu": None}
    assert load_profile(write(tmp_path, without)).gpu is None


def test_files_that_are_no_profiles(tmp_path: Path) -> None:
    refused(tmp_path / "absent.json", "No such file")
    refused(tmp_path, "Is a directory")
    path = tmp_path / "machine.json"
    for text in ("", "{", '{"name": "x",}', "[" * 100_000):
        path.write_text(text)
        refused(path, "JSON")
    path.write_bytes(b"\xff\xfe{}")
    refused(path, "JSON")
    values: list[Any] = [[], 3, None, {}, content() | {"colour": "red"}]
    for value in values:
        refused(write(tmp_path, value), "cpu, estimated, gpu, name")


CHANGES: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "a rate is missing": (lambda c: c["cpu"].pop("launch_s"), "cpu: "),
    "a rate is unknown": (lambda c: c["gpu"].update(speed=3), "gpu: "),
    "cpu is no object": (lambda c: c.update(cpu=3), "cpu: "),
    "gpu is no object": (lambda c: c.update(gpu=[]), "gpu: "),
    "a rate is text": (lambda c: c["cpu"].update(island_s="fast"), "cpu.island_s: 'fast'"),
    "a rate is a bool": (lambda c: c["cpu"].update(ram_bytes=True), "cpu.ram_bytes: True"),
    "a rate is null": (lambda c: c["gpu"].update(vram_bytes=None), "gpu.vram_bytes: None"),
    "a rate is negative": (lambda c: c["gpu"].update(launch_s=-1e-6), "gpu.launch_s: -1e-06"),
    "a rate is zero": (lambda c: c["gpu"].update(bus_bytes_per_s=0), "gpu.bus_bytes_per_s: 0"),
    "a rate is infinite": (lambda c: c["gpu"].update(vram_bytes_per_s=1e999), "gpu.vram_bytes_per_s: inf"),
    "a rate is absurd": (lambda c: c["gpu"].update(vram_bytes=10**400), "gpu.vram_bytes: 1000"),
    "a format is missing": (lambda c: c["cpu"]["multiply_bytes_per_s"].pop("int4"), "multiply_bytes_per_s: "),
    "no rate for one row": (
        lambda c: c["cpu"]["multiply_bytes_per_s"]["fp16"].pop("1"),
        "multiply_bytes_per_s.fp16: ",
    ),
    "no number of rows": (
        lambda c: c["cpu"]["multiply_bytes_per_s"]["bf16"].update(many=1.0),
        "multiply_bytes_per_s.bf16: ",
    ),
    "a multiply rate is zero": (
        lambda c: c["cpu"]["multiply_bytes_per_s"]["int8"].update({"1": 0}),
        "multiply_bytes_per_s.int8.1: 0",
    ),
    "a GEMM's rate is zero": (lambda c: c["gpu"]["flops_per_s"].update(bf16=0), "gpu.flops_per_s.bf16: 0"),
    "a GEMM's rate is missing": (
        lambda c: c["gpu"]["flops_per_s"].pop("fp32"),
        "gpu.flops_per_s: ",
    ),
    "a GEMM has one rate": (lambda c: c["gpu"].update(flops_per_s=1e12), "gpu.flops_per_s: "),
    "a rate is almost nothing": (lambda c: c["cpu"].update(attention_bytes_per_s=1e-320), "attention_bytes_per_s: 1e"),
    "a cost is a year": (lambda c: c["cpu"].update(step_s=3e7), "cpu.step_s: 30000000.0"),
    "no threads": (lambda c: c["cpu"].update(threads=0), "cpu.threads: 0"),
    "half a thread": (lambda c: c["cpu"].update(threads=1.5), "cpu.threads: 1.5"),
    "a number of rows that is no number": (
        lambda c: c["cpu"]["multiply_bytes_per_s"]["bf16"].update({"9" * 5000: 1.0}),
        "multiply_bytes_per_s.bf16: ",
    ),
    "a name is empty": (lambda c: c.update(name=""), "name: ''"),
    "a name is too long": (lambda c: c.update(name="x" * 201), "name: 'xxx"),
    "a name is no text": (lambda c: c.update(name=["x"]), "name: ['x']"),
    "a name would move the cursor": (lambda c: c["gpu"].update(name="\x1b[2J"), "gpu.name: "),
    "estimated is text": (lambda c: c.update(estimated="no"), "estimated: 'no'"),
    "a rate is no number": (lambda c: c["cpu"].update(launch_s=float("nan")), "cpu.launch_s: nan"),
}


@pytest.mark.parametrize("case", CHANGES)
def test_profiles_that_lie_are_named_by_key_and_value(case: str, tmp_path: Path) -> None:
    change, mention = CHANGES[case]
    changed = content()
    change(changed)
    refused(write(tmp_path, changed), mention)


def test_time_between_measured_numbers_of_rows_is_a_straight_line_and_beyond_them_grows_with_the_rows() -> None:
    rates = replace(find_profile("generic-cpu").cpu, multiply_bytes_per_s={"fp16": {1: 100.0, 5: 20.0}})
    seconds = [rates.multiply_s(WeightFormat.FP16, 100, rows) for rows in (1, 3, 5, 10)]
    assert seconds == pytest.approx([1, 3, 5, 10])


def test_a_name_may_have_200_characters(tmp_path: Path) -> None:
    assert load_profile(write(tmp_path, content() | {"name": "x" * 200})).name == "x" * 200


def test_a_cost_may_be_nothing(tmp_path: Path) -> None:
    changed = content()
    changed["gpu"]["workspace_bytes"] = changed["cpu"]["launch_s"] = 0
    loaded = load_profile(write(tmp_path, changed))
    assert loaded.gpu is not None
    assert (loaded.gpu.workspace_bytes, loaded.cpu.launch_s) == (0, 0)
