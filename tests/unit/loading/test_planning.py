"""From a folder with a config alone to a plan; nothing heavy is loaded for it."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hybrid.errors import ModelError, UsageError
from hybrid.loading.planning import make_plan
from hybrid.loading.settings import RunSettings
from hybrid.loading.target import find_profile
from offload.spec.units import GIB, MIB

LAYERS = 4
TINYLLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_hidden_layers": LAYERS,  # of 22: plans of all take seconds
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "vocab_size": 32000,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
    "bos_token_id": 1,
    "eos_token_id": 2,
}
# q and o 2048x2048, k and v 2048x256, gate, up and down 2048x5632; the head 2048x32000.
LAYER_PARAMETERS = 2 * 2048 * 2048 + 2 * 2048 * 256 + 3 * 2048 * 5632
LINEAR_BYTES = 2 * (LAYERS * LAYER_PARAMETERS + 2048 * 32000)
TIGHT, TIGHT_BYTES = "320MiB", 320 * MIB  # of which 245 are context, workspace, staging and activations
CACHE_BYTES_PER_TOKEN = LAYERS * 2 * 4 * 64 * 4  # layers, keys and values, heads, head size, fp32


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "tinyllama"
    path.mkdir()
    (path / "config.json").write_text(json.dumps(TINYLLAMA))
    return path


def plan_json(folder: Path, cuda: str, **changes: Any) -> dict[str, Any]:
    settings = RunSettings(model=folder, cuda=cuda, machine="colab-t4", **changes)
    content = make_plan(settings).to_json()
    assert json.loads(json.dumps(content)) == content
    return content


@pytest.fixture(scope="module")
def roomy(folder: Path) -> dict[str, Any]:
    return plan_json(folder, "6")


@pytest.fixture(scope="module")
def tight(folder: Path) -> dict[str, Any]:
    return plan_json(folder, TIGHT)


def test_the_keys_of_a_plan(roomy: dict[str, Any]) -> None:
    assert list(roomy) == [
        "model", "machine", "budget_bytes", "ram_budget_bytes", "chunk_tokens", "prefill_tokens", "ring", "vram_bytes",
        "ram_bytes", "linears", "predicted", "at_depths", "prefill", "bound_s", "advice", "notes", "warnings",
    ]  # fmt: skip
    assert (roomy["model"], roomy["machine"]["name"]) == ("tinyllama", "colab-t4")
    assert roomy["budget_bytes"] == 6 * GIB
    assert list(roomy["ring"]) == ["slots", "slot_bytes"]
    assert list(roomy["vram_bytes"]) == ["context", "workspace", "staging", "activations", "weights"]
    assert list(roomy["ram_bytes"]) == [
        "host weights", "read-ahead buffers", "pinned weights", "other weights", "kv cache", "activations",
        "interpreter and libraries", "staging",
    ]  # fmt: skip
    assert list(roomy["linears"][0]) == [
        "name", "shape", "format", "layout", "bytes", "kind", "layer", "host_format", "tier",
        "resident", "streamed", "host", "prefill_stop", "reason",
    ]  # fmt: skip
    assert list(roomy["predicted"])[:2] == ["decode_step_s", "decode_tokens_per_s"]


@pytest.mark.parametrize(
    ("holds", "depths"), [(512, [0, 256]), (2048, [0, 1024]), (4096, [0, 1024]), (32768, [0, 1024, 4096])]
)
def test_steps_are_told_as_deep_as_a_model_goes(tmp_path: Path, holds: int, depths: list[int]) -> None:
    config = TINYLLAMA | {"max_position_embeddings": holds}
    (tmp_path / "config.json").write_text(json.dumps(config))
    plan = make_plan(RunSettings(tmp_path, cuda="0"))
    assert [step.depth for step in plan.at_depths] == depths
    assert plan.predicted.depth == depths[1]


def test_of_a_model_that_fits_the_host_keeps_what_it_multiplies_meanwhile(roomy: dict[str, Any]) -> None:
    linears = roomy["linears"]
    assert len(linears) == LAYERS * 7 + 1
    assert sum(linear["bytes"] for linear in linears) == LINEAR_BYTES
    assert sum(roomy["vram_bytes"].values()) <= 6 * GIB
    assert 0.8 * LINEAR_BYTES < roomy["vram_bytes"]["weights"] <= LINEAR_BYTES
    assert roomy["vram_bytes"]["weights"] + roomy["ram_bytes"]["host weights"] == LINEAR_BYTES
    assert roomy["ram_bytes"]["pinned weights"] == 0
    assert roomy["ram_bytes"]["kv cache"] == 2048 * CACHE_BYTES_PER_TOKEN


def test_a_tight_budget_is_filled_and_not_exceeded(tight: dict[str, Any], roomy: dict[str, Any]) -> None:
    used = sum(tight["vram_bytes"].values())
    assert TIGHT_BYTES - 16 * 2 * 2048 * (7 * LAYERS + 1) * 3 < used <= TIGHT_BYTES  # less than a tile of each is left
    parts = ("resident", "streamed", "host")
    sizes = {part: sum(_part_bytes(linear, part) for linear in tight["linears"]) for part in parts}
    assert sum(sizes.values()) == LINEAR_BYTES
    assert sizes["streamed"] == tight["ram_bytes"]["pinned weights"] > 0
    assert sizes["host"] == tight["ram_bytes"]["host weights"]
    assert tight["predicted"]["decode_step_s"] > roomy["predicted"]["decode_step_s"]
    kinds: dict[str, set[int]] = {}
    for linear in tight["linears"]:
        kinds.setdefault(linear["kind"], set()).add(linear["resident"][1])
    assert len(kinds) == 8
    assert all(max(stops) - min(stops) <= 16 for stops in kinds.values())  # layers differ by a tile at most


def _part_bytes(linear: dict[str, Any], part: str) -> int:
    start, stop = linear[part]
    return int(2 * linear["shape"][0] * (stop - start))


def test_no_budget_keeps_everything_on_the_host(folder: Path) -> None:
    content = plan_json(folder, "0")
    assert sum(content["vram_bytes"].values()) == 0
    assert content["ram_bytes"]["host weights"] == LINEAR_BYTES
    assert {linear["reason"] for linear in content["linears"]} == {"the budget is 0"}


def test_the_context_is_reserved_as_asked_and_within_the_model(folder: Path) -> None:
    assert plan_json(folder, "0", context_tokens=100)["ram_bytes"]["kv cache"] == 100 * CACHE_BYTES_PER_TOKEN
    for tokens, mention in ((4096, "at most 2,048 positions"), (0, "between 1 and"), (1 << 23, "between 1 and")):
        with pytest.raises(UsageError, match=mention):
            plan_json(folder, "0", context_tokens=tokens)


def test_estimated_rates_and_clamped_budgets_are_told(folder: Path) -> None:
    notes = plan_json(folder, "64")["notes"]
    assert any("the rates are estimates" in note for note in notes)
    assert any("asked for 64.00 GiB" in note for note in notes)


def test_the_same_settings_give_the_same_bytes(folder: Path, tight: dict[str, Any]) -> None:
    assert json.dumps(plan_json(folder, TIGHT)) == json.dumps(tight)


def test_a_folder_without_a_model_is_an_error_of_ours(tmp_path: Path) -> None:
    with pytest.raises(ModelError):
        make_plan(RunSettings(model=tmp_path, cuda="6", machine="colab-t4"))


def test_a_plan_loads_no_heavy_library(folder: Path) -> None:
    """In a fresh process: import, then plan a Hugging Face folder without a GPU library or a compiler.

    The MILP needs scipy's solver.
    """
    program = f"""
import sys
import hybrid.loading.planning as planning
heavy = {{"onnxruntime", "numba", "llvmlite", "scipy", "cupy", "torch", "sentencepiece"}}
print(sorted(heavy & sys.modules.keys()))
from pathlib import Path
from hybrid.loading.settings import RunSettings
planning.make_plan(RunSettings(model=Path({str(folder)!r}), cuda="6", machine="colab-t4"))
print(sorted(heavy & sys.modules.keys()))
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.stdout, done.stderr, done.returncode) == ("[]\n['scipy']\n", "", 0)


def test_a_machine_without_a_gpu_is_planned_for_unless_a_gpu_is_asked_for() -> None:
    for cuda in (None, "auto", "0"):
        plan = make_plan(RunSettings(machine="generic-cpu", cuda=cuda))
        assert plan.budget_bytes == 0
    with pytest.raises(UsageError, match="generic-cpu: this profile has no GPU"):
        make_plan(RunSettings(machine="generic-cpu", cuda="6"))


def test_threads_that_a_plan_is_not_for_are_told() -> None:
    cpus = len(os.sched_getaffinity(0))
    assert any("--threads" in line for line in make_plan(RunSettings(threads=cpus + 1, cuda="0")).warnings)
    measured = find_profile("colab-t4").cpu.threads
    other = make_plan(RunSettings(machine="colab-t4", threads=measured + 1))
    assert any("no effect" in line for line in other.warnings)
    same = make_plan(RunSettings(machine="colab-t4", threads=measured))
    assert not any("--threads" in line for line in same.warnings)
