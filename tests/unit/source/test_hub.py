"""Models by name, from a hub on the loopback."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from hybrid.errors import ModelFileError, UnsupportedModelError, UsageError
from hybrid.formats.onnx_graph import common_folder, read_graph, serialize
from hybrid.loading.open_model import open_model
from hybrid.loading.resolve import resolve_model
from hybrid.source.folder import find_model
from hybrid.source.hub_files import RepositoryFile, choose_files
from tests.fakes import RecordedProgress
from tests.hub_stub import StubHub, connect, tiny_files

NAME = "org/tiny"
SHARDS = [f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3)]
NEEDED = ["config.json", "tokenizer.model", "model.safetensors.index.json", *SHARDS]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StubHub]:
    """A hub with a tiny model in three shards, and huggingface_hub told to use it."""
    with StubHub(NAME, tiny_files(tmp_path / "made")) as hub:
        connect(monkeypatch, hub, tmp_path / "home")
        yield hub


def onnx_files(folder: Path) -> dict[str, bytes]:
    """A decoder as an ONNX file that names its weights in a file of an unusual name."""
    tiny_files(folder, shards=1)
    decoder, _ = open_model(folder, None)
    graph = decoder.graph
    initializers = graph.initializers.values()
    assert common_folder(initializers) == folder
    message = serialize("tiny", graph.nodes, graph.inputs, graph.outputs, initializers, graph.opsets, folder)
    return {"model.onnx": message, "model.safetensors": (folder / "model.safetensors").read_bytes()}


def test_a_sharded_model_opens_and_is_downloaded_once(hub: StubHub) -> None:
    path = resolve_model(NAME)
    assert hub.fetched() == NEEDED
    assert find_model(path).name == NAME
    decoder, _ = open_model(path, None)
    assert decoder.vocab_size == 40
    assert decoder.graph.initializers["model.embed_tokens.weight"].array().shape == (40, 32)

    hub.requests.clear()
    assert resolve_model(NAME) == path
    assert [request.path for request in hub.requests] == [f"/api/models/{NAME}/revision/main"]


def test_progress_adds_up(hub: StubHub) -> None:
    told = RecordedProgress()
    resolve_model(NAME, progress=told)
    stages, parts = told.stages, told.parts
    assert stages[0] == (f"Looking up {NAME}", 0)
    assert {label for label, _ in stages[1:]} == {f"Downloading {NAME}"}
    assert sum(parts) == sum(total for _, total in stages) == sum(len(hub.files[name]) for name in NEEDED)
    assert min(parts) > 0
    assert max(parts) < len(hub.files[SHARDS[0]])


def test_other_programs_find_the_files_in_the_cache(hub: StubHub) -> None:
    from huggingface_hub import hf_hub_download

    path = resolve_model(NAME)
    hub.requests.clear()
    assert hf_hub_download(NAME, SHARDS[1]) == str(path / SHARDS[1])
    assert hub.fetched() == []
    assert (path / SHARDS[1]).resolve().parent.name == "blobs"


def test_files_that_another_program_downloaded_are_used(hub: StubHub) -> None:
    from huggingface_hub import hf_hub_download

    hf_hub_download(NAME, SHARDS[0])
    hub.requests.clear()
    resolve_model(NAME)
    assert SHARDS[0] not in hub.fetched()


def test_a_config_is_enough_to_plan(hub: StubHub) -> None:
    path = resolve_model(NAME, config_only=True)
    assert hub.fetched() == NEEDED[:3]
    assert path.name == "config.json"
    found = find_model(path)
    assert (found.name, found.safetensors_files) == (NAME, ())
    assert open_model(path, None)[0].vocab_size == 40

    whole = resolve_model(NAME)
    assert hub.fetched() == NEEDED
    assert resolve_model(NAME, config_only=True) == whole


def test_a_revision(hub: StubHub) -> None:
    hub.revisions = ("main", "v1.0", "refs/pr/1")
    paths = {resolve_model(f"{NAME}@{revision}") for revision in (*hub.revisions, hub.commit)}
    assert len(paths) == 1
    with pytest.raises(ModelFileError, match=f"^{NAME}: has no revision v2"):
        resolve_model(f"{NAME}@v2")


def test_without_a_network_the_cache_is_used(hub: StubHub, monkeypatch: pytest.MonkeyPatch) -> None:
    path = resolve_model(NAME)
    hub.requests.clear()
    with monkeypatch.context() as offline:
        offline.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        assert resolve_model(NAME) == path
        assert resolve_model(f"{NAME}@{hub.commit}") == path
    assert hub.requests == []
    with monkeypatch.context() as unreachable:
        unreachable.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
        assert resolve_model(NAME) == path
    hub.busy = [503] * 5
    assert resolve_model(NAME) == path


def test_planning_a_newer_commit_keeps_the_older_one_for_offline_runs(
    hub: StubHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    older = resolve_model(NAME)
    hub.commit = "c" * 40
    hub.files = {name: data + b" " if name.endswith("tors") else data for name, data in hub.files.items()}
    newer = resolve_model(NAME, config_only=True)
    assert (newer.name, newer.parent.name) == ("config.json", hub.commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert resolve_model(NAME) == older


def test_a_class_that_is_not_known_is_refused_before_its_weights_come(hub: StubHub) -> None:
    config = json.loads(hub.files["config.json"]) | {"architectures": ["BitnetForCausalLM"]}
    hub.files["config.json"] = json.dumps(config).encode()
    with pytest.raises(UnsupportedModelError, match=r"^org/tiny/config.json: architectures is .*BitnetForCausalLM"):
        resolve_model(NAME)
    assert not any(name.endswith(".safetensors") for name in hub.fetched())
    assert resolve_model(NAME, allow_unused=True).name == hub.commit
    assert set(SHARDS) <= set(hub.fetched())


@pytest.mark.parametrize("content", [b"\xff" * 40, b"no commit", b"c" * 40 + b" " * 2000, None])
def test_a_name_in_the_cache_that_leads_nowhere(
    content: bytes | None, hub: StubHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = resolve_model(NAME)
    reference = path.parents[1] / "refs" / "main"
    reference.unlink()
    if content is None:
        os.mkfifo(reference)  # nobody writes to it
    else:
        reference.write_bytes(content)
    with monkeypatch.context() as offline:
        offline.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        with pytest.raises(ModelFileError, match="not in the cache"):
            resolve_model(NAME)
    assert resolve_model(NAME) == path  # and the hub's answer takes its place
    assert reference.read_text() == hub.commit


def test_the_token_goes_to_the_hub_and_not_to_its_storage(hub: StubHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    resolve_model(NAME)
    tokens = {("/storage/" in request.path, request.token) for request in hub.requests}
    assert tokens == {(False, "Bearer hf_secret"), (True, None)}


def test_an_onnx_file_by_variant_with_its_weights(hub: StubHub, tmp_path: Path) -> None:
    made = onnx_files(tmp_path / "onnx")
    hub.files = {
        "config.json": hub.files["config.json"],
        "tokenizer.model": b"pieces",
        "onnx/model.onnx": b"another",
        "onnx/model.onnx_data": b"its weights",
        "onnx/model_q4.onnx": made["model.onnx"],
        "onnx/model_q4.onnx_data": b"some of its weights",
        "onnx/model.safetensors": made["model.safetensors"],
    }
    path = resolve_model(NAME, "q4")
    assert hub.fetched() == ["config.json", "tokenizer.model", *sorted(hub.files)[4:6][::-1], "onnx/model.safetensors"]
    found = find_model(path)
    assert found.kind == "onnx"
    assert found.tokenizer_model == found.folder / "tokenizer.model"
    assert found.name == NAME
    assert found.onnx is not None
    graph = read_graph(found.onnx)
    assert graph.initializers["model.embed_tokens.weight"].array().shape == (40, 32)


def test_the_environment_is_honoured(hub: StubHub, tmp_path: Path) -> None:
    code = f"from hybrid.loading.resolve import resolve_model; print(resolve_model({NAME!r}))"
    environment = {
        **os.environ,
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(tmp_path / "other"),
        "HF_TOKEN": "hf_secret",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_XET": "1",
        "NO_PROXY": "*",
    }
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert result.stderr == ""
    assert result.stdout.startswith(str(tmp_path / "other" / "hub"))
    assert {request.token for request in hub.requests} == {"Bearer hf_secret", None}

    hub.requests.clear()
    environment["HF_HUB_OFFLINE"] = "1"
    again = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert (again.stdout, hub.requests) == (result.stdout, [])


def test_links_into_the_store_that_all_repositories_share(hub: StubHub) -> None:
    path = resolve_model(NAME)
    blob = (path / SHARDS[0]).resolve()
    shared = path.parents[2] / "blobs" / "ab" / blob.name
    shared.parent.mkdir(parents=True)
    blob.rename(shared)
    blob.symlink_to(Path("../../blobs/ab") / blob.name)
    assert open_model(path, None)[0].vocab_size == 40


def test_what_lies_at_the_path_wins(hub: StubHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / NAME).mkdir(parents=True)
    assert resolve_model(NAME) == Path(NAME)
    for path in ("nowhere", "./a/b", "/a/b", "a/b/c", "a/../b", "org/tiny@../x", "org/tiny@a/../../x"):
        assert resolve_model(path) == Path(path)
    assert hub.requests == []


def test_the_variant_of_a_local_folder(tmp_path: Path) -> None:
    (tmp_path / "onnx").mkdir()
    for name in ("model.onnx", "model_fp16.onnx"):
        (tmp_path / "onnx" / name).write_bytes(b"12345678")
    assert resolve_model(tmp_path, "fp16") == tmp_path / "onnx" / "model_fp16.onnx"
    assert resolve_model(tmp_path, "fp32") == tmp_path / "onnx" / "model.onnx"
    with pytest.raises(UsageError, match=r"^--variant q4: /.* has fp16 \(8 B\), fp32 \(8 B\)$"):
        resolve_model(tmp_path, "q4")
    with pytest.raises(UsageError, match="is a file"):
        resolve_model(tmp_path / "onnx" / "model.onnx", "fp16")
    with pytest.raises(UsageError, match="no such folder"):
        resolve_model(tmp_path / "nowhere", "fp16")


def choose(names: list[str], variant: str | None = None) -> tuple[list[str], str | None]:
    files = {name: RepositoryFile(name, 2**20 * len(name)) for name in names}
    choice = choose_files("org/x", files, variant)
    chosen = [*choice.weights, *((choice.index,) if choice.index else ())]
    return [file.name for file in chosen], choice.onnx.name if choice.onnx else None


def test_safetensors_are_chosen_without_their_duplicates() -> None:
    others = ["config.json", "consolidated.safetensors", "pytorch_model.bin", "onnx/model.onnx", "tiny.gguf"]
    assert choose(["model.safetensors", "model.safetensors.index.json", *others]) == (["model.safetensors"], None)
    assert choose(["model.safetensors.index.json", "model-00001-of-00001.safetensors", *others]) == (
        ["model.safetensors.index.json"],
        None,
    )
    assert choose(["a.safetensors", "adapter_model.safetensors", "x/b.safetensors", *others]) == (
        ["a.safetensors"],
        None,
    )
    assert choose(["model.safetensors", *others], "fp32") == ([], "onnx/model.onnx")


VARIANTS = ["model.onnx", "model.onnx_data", "model.onnx_data_1", "model_fp16.onnx", "model_fp16.onnx.data"]


@pytest.mark.parametrize("folder", ["", "onnx/"])
def test_onnx_variants(folder: str) -> None:
    names = ["config.json", *(folder + name for name in (*VARIANTS, "model_q4f16.onnx", "model_quantized.onnx"))]
    assert choose(names, "fp32") == ([folder + VARIANTS[1], folder + VARIANTS[2]], folder + "model.onnx")
    assert choose(names, "fp16") == ([folder + "model_fp16.onnx.data"], folder + "model_fp16.onnx")
    assert choose(names, "quantized") == ([], folder + "model_quantized.onnx")
    with pytest.raises(UsageError, match=r"^org/x: has several ONNX files: fp16 \(.* MiB\), .*--variant fp16$"):
        choose(names)
    with pytest.raises(UsageError, match=r"^--variant q8: org/x has fp16 \("):
        choose(names, "q8")


def test_the_decoder_among_other_onnx_files() -> None:
    names = ["decoder_model.onnx", "decoder_model_merged.onnx", "decoder_with_past_model.onnx", "encoder_model.onnx"]
    assert choose(names) == ([], "decoder_model_merged.onnx")
    assert choose([*names, "decoder_model_merged_q4.onnx"], "q4") == ([], "decoder_model_merged_q4.onnx")
    assert choose(["decoder_model.onnx", "decoder_model_q4.onnx"], "q4") == ([], "decoder_model_q4.onnx")
    assert choose(["tiny.onnx", "tiny.data"]) == (["tiny.data"], "tiny.onnx")
    assert choose(["a.onnx", "b.onnx"], "a") == ([], "a.onnx")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "it is empty"),
        (["config.json", "pytorch_model.bin"], "no weights that can be run"),
        (["adapter_config.json", "adapter_model.safetensors"], "LoRA adapter"),
        (["cpu/int4/model.onnx"], "no weights that can be run"),
    ],
)
def test_repositories_without_a_model(names: list[str], message: str) -> None:
    with pytest.raises(ModelFileError, match=message):
        choose(names)


def test_a_variant_of_safetensors() -> None:
    with pytest.raises(UsageError, match="only safetensors"):
        choose(["config.json", "model.safetensors"], "q4")
