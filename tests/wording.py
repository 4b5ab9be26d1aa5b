"""One message of every kind that users read, provoked; tests/wording.txt has the words.

    python -m tests.wording > tests/wording.txt     # after a change of words: read the difference

Other tests assert classes, names and values, so that a better sentence changes one file.
"""

import io
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr
from dataclasses import replace
from math import inf, nan
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from hybrid.cli import main as cli
from hybrid.cli.flags import RunFlags
from hybrid.cli.settings_file import find_settings, read_settings, settings_of
from hybrid.doctor import Finding
from hybrid.doctor.cuda_probe import ProbeResult, examine_libraries, loaded_libraries
from hybrid.doctor.gpu import examine_cuda, examine_driver
from hybrid.errors import DeviceUnavailableError
from hybrid.families.registry import parse_config
from hybrid.formats.safetensors import read_index
from hybrid.loading.settings import RunSettings
from hybrid.loading.target import choose_target
from hybrid.machine.profiles import calibration_file, find_profile, save_profile
from hybrid.text.sampling import Sampler, SamplingSettings
from offload.errors import DEVICE_MEMORY, PINNED_RAM, DeviceLostError, OffloadError, OutOfDeviceMemoryError
from offload.machine.budget import Budget, parse_budget, resolve_budget
from offload.machine.profile import load_profile
from offload.plan.planner import make_plan
from offload.run.recovery import Replanner
from offload.spec.units import GIB, MIB
from tests.hf_models import raw_safetensors, tiny_config
from tests.unit.doctor.test_examination import versions
from tests.unit.doctor.test_gpu import MAPS, NEW, OLD, pci_device
from tests.unit.plan.test_planner import MACHINE, request, spec

GOLDEN = Path(__file__).with_name("wording.txt")
PAIR = [spec("a", 1024, 512), spec("b", 1024, 512)]
STAYS = spec("q", 64, 64, "int4", why="4-bit blocks")


def error_of(call: Callable[..., object], *given: object, **named: object) -> str:
    """The message of the error that a call raises."""
    try:
        call(*given, **named)
    except OffloadError as error:
        return str(error)
    raise AssertionError(f"{call} raised nothing")


def in_file(folder: Path, content: str | bytes, read: Callable[[Path], object]) -> str:
    """The message about a file with this content."""
    path = folder / "file"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return error_of(read, path)


def no_gpu(*_: object) -> Any:
    raise DeviceUnavailableError("no NVIDIA driver")


def of_settings(folder: Path) -> Iterator[str]:
    def read(path: Path) -> object:
        return read_settings(path, settings_of(RunFlags))

    for text in ("max-token = 5", "cuda.gpu = 1", 'cuda = "1"\nmax-tokens = "5"', "temperature = false", "verbose = 1"):
        yield in_file(folder, text, read)
    yield in_file(folder, b'model = "\xe9"', read)
    yield error_of(read, folder / "absent.toml")
    yield error_of(find_settings, "gpu-7gb")


def of_budgets(folder: Path) -> Iterator[str]:
    for text in ("-6", "101%", "six"):
        yield error_of(parse_budget, text)
    yield resolve_budget(Budget(nbytes=12 * GIB), 8 * GIB, 16 * GIB).note


def of_targets(folder: Path) -> Iterator[str]:
    asked: list[dict[str, Any]] = [
        {"cuda": "6"}, {"cuda": "6", "device": "cpu"}, {"device": "gpu"}, {"machine": "cray-1"},
        {"cuda": "6", "machine": "generic-cpu"},
    ]  # fmt: skip
    for settings in asked:
        yield error_of(choose_target, RunSettings(**settings), no_gpu)
    yield choose_target(RunSettings(), no_gpu).why


def of_sampling(folder: Path) -> Iterator[str]:
    asked: list[dict[str, Any]] = [
        {"temperature": -0.1}, {"top_k": -1}, {"top_p": 1.5}, {"seed": -1}, {"typical_p": 0.0}, {"min_p": 1.5},
        {"repetition_penalty": 0.0}, {"presence_penalty": nan}, {"frequency_penalty": inf}, {"logit_bias": {-1: 0.0}},
    ]  # fmt: skip
    for settings in asked:
        yield error_of(SamplingSettings, **settings)
    for bias, logits in (({4: 1.0}, [0.0] * 4), ({0: -inf, 1: -inf}, [0.0] * 2), ({}, [0.0, nan])):
        yield error_of(Sampler(SamplingSettings(logit_bias=bias)), np.array(logits, np.float32))


def of_the_command_line(folder: Path) -> Iterator[str]:
    lines = (
        "run --cudda 6 a", "run", "plan a b", "run --stats xml a",
        "plan --max-tokens 4", "rum", "run --raw --chat-template chatml a", "plan --draw plan.pdf",
    )  # fmt: skip
    for line in lines:
        with redirect_stderr(io.StringIO()) as said:
            cli.main(line.split())
        yield said.getvalue().strip()


def of_profiles(folder: Path) -> Iterator[str]:
    yield error_of(load_profile, folder / "absent.json")
    for text in ("{", "{}"):
        yield in_file(folder, text, load_profile)
    for key, value in (("launch_s", ...), ("island_s", "fast"), ("ram_bytes", -1)):
        content = find_profile("generic-cpu").to_json()
        content["cpu"] = {k: v for k, v in (content["cpu"] | {key: value}).items() if v is not ...}
        yield in_file(folder, json.dumps(content), load_profile)


def of_measured_profiles(folder: Path) -> Iterator[str]:
    base = find_profile("generic-cpu")
    for profile in (
        None,
        replace(base, name="box", estimated=True),
        replace(base, name="box", estimated=False, cpu=replace(base.cpu, threads=3)),
    ):
        if profile:
            save_profile(profile, calibration_file("box"))
        target = choose_target(RunSettings(cuda="0", threads=1), no_gpu)
        yield from (*target.notes, *target.warnings)


def of_model_files(folder: Path) -> Iterator[str]:
    entry = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    headers: list[Any] = [
        b"{nonsense", {"t": 3}, {"t": entry | {"dtype": "F31"}}, {"t": entry | {"shape": [-2]}},
        {"t": entry | {"data_offsets": [0, 7]}}, {"t": entry, "u": entry}, {"t": entry | {"dtype": "F8_E8M0"}},
    ]  # fmt: skip
    for header in headers:
        yield in_file(folder, raw_safetensors(header, bytes(8)), lambda path: read_index([path]))
    yield in_file(folder, b"1234567", lambda path: read_index([path]))
    yield in_file(folder, "version https://git-lfs.github.com/spec/v1", lambda path: read_index([path]))
    changes: list[dict[str, Any]] = [
        {"hidden_size": -1}, {"head_dim": 7}, {"hidden_act": "mish"},
        {"rope_scaling": {"rope_type": "axial", "factor": 2.0}},
        {"quantization_config": {"quant_method": "gptq", "bits": 4}},
    ]  # fmt: skip
    for change in changes:
        yield error_of(parse_config, tiny_config() | change, "config.json")


def of_plans(folder: Path) -> Iterator[str]:
    for asked in (
        request(PAIR, MIB),
        request([spec("a", 64, 64, "bf16")], GIB, unsupported={"bf16": "bf16 needs compute capability 8.0"}),
        request([STAYS], GIB),
        request([STAYS, spec("f", 64, 64)], GIB),
    ):
        plan = make_plan(asked)
        yield from plan.notes
        yield from dict.fromkeys(placement.reason for placement in plan.placements)


def of_recovery(folder: Path) -> Iterator[str]:
    linears = [spec(str(number), 1024, 4096) for number in range(16)]

    def shrink(*errors: Exception) -> str:
        replanner = Replanner(replace(request(linears, GIB), pinned_limit_bytes=None, profile=MACHINE))
        return [replanner.shrink(error) for error in errors][-1]

    for asked_bytes, where in ((100 * MIB, DEVICE_MEMORY), (0, DEVICE_MEMORY), (GIB, DEVICE_MEMORY), (MIB, PINNED_RAM)):
        yield shrink(OutOfDeviceMemoryError(asked_bytes, 0, GIB, where))
    yield shrink(DeviceLostError("it burns"))
    yield str(OutOfDeviceMemoryError(100 * MIB, GIB, 2 * GIB, DEVICE_MEMORY))


def of_the_doctor(folder: Path) -> Iterator[str]:
    build = versions(cupy_cuda13x="14.0.1")
    yield from map(findings_text, examine_driver(None, "no NVIDIA driver found", folder))
    pci_device(folder)
    yield from map(findings_text, examine_driver(None, "no NVIDIA driver found", folder))
    for driver, probed, found in (
        (NEW, ProbeResult(name="Stub T4"), build),
        (NEW, ProbeResult(name="Stub T4", unsupported={"bf16": "cuBLAS refuses bf16"}), build),
        (NEW, None, versions()),
        (OLD, ProbeResult(error="the NVIDIA driver is too old"), build),
        (NEW, ProbeResult(error="no CUDA device is visible"), build),
        (NEW, ProbeResult(error="cuBLAS cannot be loaded"), build),
    ):
        yield from map(findings_text, examine_cuda(driver, probed, found, {}))
    hidden = examine_cuda(NEW, ProbeResult(name="Stub T4"), build, {"CUDA_VISIBLE_DEVICES": ""})
    yield from map(findings_text, hidden)
    yield from map(findings_text, examine_libraries(loaded_libraries(MAPS), versions(), "cu12"))


def findings_text(finding: Finding) -> str:
    return " -> ".join(filter(None, (f"{finding.level}: {finding.text}", finding.mend)))


AREAS = (
    of_settings, of_budgets, of_targets, of_sampling, of_the_command_line, of_profiles, of_measured_profiles,
    of_model_files, of_plans, of_recovery, of_the_doctor,
)  # fmt: skip


def wording() -> str:
    """All messages, by area; the folder of a file is FOLDER."""
    parts = []
    for area in AREAS:
        machine = patch("platform.node", return_value="box")
        with tempfile.TemporaryDirectory() as folder, patch.dict(os.environ, XDG_CONFIG_HOME=folder), machine:
            lines = [line.replace(folder, "FOLDER") for line in area(Path(folder))]
        parts.append("\n".join([f"# {area.__name__.removeprefix('of_').replace('_', ' ')}", *lines, ""]))
    return "\n".join(parts)


if __name__ == "__main__":
    sys.stdout.write(wording())
