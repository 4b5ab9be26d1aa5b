"""Refusals, broken connections, full disks and hostile listings: one line, nothing half-written, no byte twice."""

import hashlib
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from hybrid.errors import ModelError, ModelFileError, UnsupportedModelError, UsageError
from hybrid.loading.open_model import open_model
from hybrid.loading.resolve import resolve_model
from hybrid.progress import Progress
from hybrid.source import hub_repository
from hybrid.source.hub_errors import BACKOFF_S
from tests.fakes import RecordedProgress
from tests.hub_stub import StubHub, connect, tiny_files
from tests.messages import one_line

NAME = "org/tiny"
WEIGHTS = "model.safetensors"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StubHub]:
    """A hub with a tiny model in one file, and huggingface_hub told to use it."""
    with StubHub(NAME, tiny_files(tmp_path / "made", shards=1)) as hub:
        connect(monkeypatch, hub, tmp_path / "home")
        yield hub


def resolve(name: str = NAME, **options: Any) -> Path:
    return resolve_model(name, pause=lambda seconds: None, **options)


def refused(*mentions: str, kind: type[ModelError] = ModelFileError, name: str = NAME) -> str:
    """The message of the error that resolving must raise."""
    return one_line(kind, lambda: resolve(name), *mentions)


def parts(tmp_path: Path) -> list[Path]:
    return list((tmp_path / "home").rglob("*.incomplete"))


def whole_files(tmp_path: Path, hub: StubHub) -> None:
    """Everything in the cache that has a name is whole."""
    for path in (tmp_path / "home").rglob("snapshots/*/**/*"):
        if path.is_file():
            name = path.relative_to(next(p for p in path.parents if p.name == hub.commit)).as_posix()
            assert path.read_bytes() == hub.files[name]


def test_a_broken_connection_goes_on_where_it_broke(hub: StubHub, tmp_path: Path) -> None:
    hub.cuts[WEIGHTS] = [3000, 40_000, 0]
    told = RecordedProgress()
    path = resolve(progress=told)
    ranges = [request.range for request in hub.requests if request.path == f"/storage/{WEIGHTS}"]
    last = len(hub.files[WEIGHTS]) - 1
    assert ranges == [None, f"bytes=3000-{last}", f"bytes=43000-{last}", f"bytes=43000-{last}"]
    assert hub.sent_bytes[WEIGHTS] == len(hub.files[WEIGHTS])
    assert sum(told.parts) == sum(len(hub.files[name]) for name in ("config.json", "tokenizer.model", WEIGHTS))
    open_model(path, None)
    assert parts(tmp_path) == []


def test_a_reset_connection_goes_on_too(hub: StubHub, tmp_path: Path) -> None:
    hub.reset = True
    hub.cuts[WEIGHTS] = [5000, 5000]
    open_model(resolve(), None)
    assert parts(tmp_path) == []


def test_another_run_goes_on_where_one_gave_up(hub: StubHub, tmp_path: Path) -> None:
    hub.cuts[WEIGHTS] = [3000] + [0] * 100
    pauses: list[float] = []
    with pytest.raises(ModelFileError, match=f"^{NAME}/{WEIGHTS}: .* what has arrived is kept"):
        resolve_model(NAME, pause=pauses.append)
    assert tuple(pauses) == BACKOFF_S
    assert [part.stat().st_size for part in parts(tmp_path)] == [3000]
    whole_files(tmp_path, hub)

    hub.cuts.clear()
    told = RecordedProgress()
    open_model(resolve(progress=told), None)
    assert hub.sent_bytes[WEIGHTS] == len(hub.files[WEIGHTS])
    assert sum(total for _, total in told.stages) == sum(told.parts) == len(hub.files[WEIGHTS]) - 3000


def test_two_programs_at_once_download_once(hub: StubHub, tmp_path: Path) -> None:
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(resolve, [NAME, NAME])
    assert first == second
    assert hub.sent_bytes[WEIGHTS] == len(hub.files[WEIGHTS])
    assert parts(tmp_path) == []
    open_model(first, None)


def test_ctrl_c_keeps_what_has_arrived(hub: StubHub, tmp_path: Path) -> None:
    class Interrupted(Progress):
        def on_bytes(self, nbytes: int) -> None:
            if parts(tmp_path):
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        resolve(progress=Interrupted())
    (part,) = parts(tmp_path)
    assert 0 < part.stat().st_size < len(hub.files[WEIGHTS])
    open_model(resolve(), None)


@pytest.mark.parametrize("stale", [b"x" * 3000, b"x" * 1_000_000])
def test_a_part_that_is_not_ours_is_thrown_away(stale: bytes, hub: StubHub, tmp_path: Path) -> None:
    sha256 = hashlib.sha256(hub.files[WEIGHTS]).hexdigest()
    blobs = tmp_path / "home" / "hub" / "models--org--tiny" / "blobs"
    blobs.mkdir(parents=True)
    (blobs / f"{sha256}.hybrid.incomplete").write_bytes(stale)
    open_model(resolve(), None)
    whole_files(tmp_path, hub)


def test_a_server_that_ignores_ranges(hub: StubHub, tmp_path: Path) -> None:
    hub.ignores_ranges = True
    hub.cuts[WEIGHTS] = [3000]
    told = RecordedProgress()
    open_model(resolve(progress=told), None)
    assert sum(told.parts) == sum(len(hub.files[name]) for name in ("config.json", "tokenizer.model", WEIGHTS))
    whole_files(tmp_path, hub)


def test_a_busy_hub_is_asked_again(hub: StubHub) -> None:
    hub.busy = [503, 503, 429]
    open_model(resolve(), None)


def test_a_hub_that_stays_busy(hub: StubHub) -> None:
    hub.busy = [503] * 100
    refused(NAME, "status 503", "try again later")


@pytest.mark.parametrize("status", [401, 403])
def test_a_gated_model(status: int, hub: StubHub, tmp_path: Path) -> None:
    hub.refusal = (status, "GatedRepo")
    refused("licence", f"{hub.url}/{NAME}", "HF_TOKEN")
    assert not list((tmp_path / "home").rglob("snapshots/*/*"))


@pytest.mark.parametrize("status", [401, 404])
def test_no_such_model(status: int, hub: StubHub) -> None:
    hub.hidden = (status, "RepoNotFound")
    refused("no such model", "check the name", "HF_TOKEN")


def test_a_refused_token(hub: StubHub) -> None:
    hub.hidden = (403, "")
    refused("403", "HF_TOKEN")


def test_no_such_revision(hub: StubHub) -> None:
    refused("no revision v9", hub.url, name=f"{NAME}@v9")


def test_a_name_that_cannot_be(hub: StubHub) -> None:
    refused("org/name", name="a--b/c..d")


def test_no_network(hub: StubHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    refused("http://127.0.0.1:9 cannot be reached", "check the network")


def test_offline_with_nothing_or_a_part_in_the_cache(hub: StubHub, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as offline:
        offline.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        refused("not in the cache", "HF_HUB_OFFLINE")
    assert hub.requests == []
    resolve(config_only=True)
    hub.requests.clear()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    refused("HF_HUB_OFFLINE", "no weights")
    assert hub.requests == []


def test_offline_with_a_shard_missing(hub: StubHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    hub.files = tiny_files(tmp_path / "sharded", shards=2)
    path = resolve()
    (path / "model-00002-of-00002.safetensors").unlink()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    refused("HF_HUB_OFFLINE", "model-00002-of-00002.safetensors", "not downloaded yet")


def test_a_disk_that_is_too_small(hub: StubHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(hub_repository, "_free_bytes", lambda folder: 40_000)
    refused("KiB to download", "39.06 KiB free", "HF_HOME", str(tmp_path / "home"))
    assert WEIGHTS not in hub.fetched()
    assert parts(tmp_path) == []

    sha256 = hashlib.sha256(hub.files[WEIGHTS]).hexdigest()  # what is there already needs no room
    blobs = tmp_path / "home" / "hub" / "models--org--tiny" / "blobs"
    (blobs / f"{sha256}.hybrid.incomplete").write_bytes(hub.files[WEIGHTS][:-30_000])
    open_model(resolve(), None)


def test_a_disk_that_becomes_full(hub: StubHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def feed(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("hybrid.source.part_file.Hashes.feed", feed)
    refused(f"{NAME}/config.json", "the disk is full", "HF_HOME")
    whole_files(tmp_path, hub)


def test_a_cache_that_cannot_be_written(hub: StubHub, monkeypatch: pytest.MonkeyPatch) -> None:
    def open_part(path: Path, *_: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("hybrid.source.hub_download.open_part", open_part)
    refused("cannot be written", "Permission denied", "HF_HOME")


def test_names_that_leave_the_folder_are_not_fetched(hub: StubHub, tmp_path: Path) -> None:
    hostile = ["../evil.safetensors", "/abs.safetensors", "onnx/../../model.onnx", "a\\b.safetensors", "a\nb.onnx", ""]
    for name in hostile:
        hub.files[name] = b"evil"
    resolve()
    assert set(hub.fetched()) == {"config.json", "tokenizer.model", WEIGHTS}
    del hub.files[WEIGHTS], hub.files["consolidated.safetensors"]
    refused("no weights")
    assert not list(tmp_path.rglob("*evil*"))


@pytest.mark.parametrize("name", ["../x.safetensors", "/x.safetensors", "a/b.safetensors", "missing.safetensors", 3])
def test_a_hostile_index(name: object, hub: StubHub) -> None:
    del hub.files[WEIGHTS]
    hub.files["model.safetensors.index.json"] = json.dumps({"weight_map": {"t": name}}).encode()
    refused("safetensors", NAME if name == "missing.safetensors" else "weight_map")


def test_a_commit_that_is_a_path(hub: StubHub) -> None:
    hub.commit = "../../../../etc"
    refused("at which commit")


def test_a_checksum_that_is_a_path(hub: StubHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    real = hub.listing()
    for entry in real["siblings"]:
        if "lfs" in entry:
            entry["lfs"]["sha256"] = "../../../evil"
    monkeypatch.setattr(hub, "listing", lambda: real)
    open_model(resolve(), None)
    assert not list(tmp_path.rglob("*evil*"))


@pytest.mark.parametrize("answer", ["<html>Log in to this network</html>", [], {"siblings": 3}, {}])
def test_an_answer_that_is_no_hub(answer: Any, hub: StubHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "listing", lambda: answer)
    refused(hub.url)


def test_a_listing_that_lies_about_sizes(hub: StubHub, tmp_path: Path) -> None:
    hub.sizes[WEIGHTS] = len(hub.files[WEIGHTS]) + 100
    refused(WEIGHTS)
    whole_files(tmp_path, hub)


def test_a_model_that_cannot_run_is_refused_before_its_weights(hub: StubHub) -> None:
    hub.files["config.json"] = b'{"model_type": "gpt2"}'
    refused("gpt2", f"{NAME}/config.json", kind=UnsupportedModelError)
    assert WEIGHTS not in hub.fetched()


def test_several_onnx_files_need_a_variant(hub: StubHub) -> None:
    hub.files = {"config.json": b"{}", "onnx/model.onnx": b"1" * 2048, "onnx/model_q4.onnx": b"1" * 1024}
    with pytest.raises(UsageError, match=r"fp32 \(2.00 KiB\), q4 \(1.00 KiB\); .*--variant q4$"):
        resolve()
    assert hub.fetched() == []
