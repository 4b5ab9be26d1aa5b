"""Hubs that send other bytes than they list, more of them, or lead astray: nothing of it gets a name in the cache."""

import base64
import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hybrid.errors import ModelFileError
from hybrid.loading.open_model import open_model
from hybrid.loading.resolve import resolve_model
from hybrid.source.hub_http import _MOST_REDIRECTS
from tests.hub_stub import StubHub, connect, git_sha1, tiny_files
from tests.messages import one_line

NAME = "org/tiny"
WEIGHTS = "model.safetensors"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StubHub]:
    """A hub with a tiny model in one file."""
    with StubHub(NAME, tiny_files(tmp_path / "made", shards=1)) as hub:
        connect(monkeypatch, hub, tmp_path / "home")
        yield hub


def resolve() -> Path:
    return resolve_model(NAME, pause=lambda seconds: None)


def refused(hub: StubHub, tmp_path: Path, *mentions: str) -> None:
    """Resolving fails, and what the cache has is right: no part is left, no name leads to other bytes."""
    one_line(ModelFileError, resolve, NAME, *mentions)
    assert_right(hub, tmp_path)


def assert_right(hub: StubHub, tmp_path: Path) -> None:
    written = {path for path in tmp_path.rglob("*") if path.is_file() and tmp_path / "made" not in path.parents}
    for path in written:
        kept = path.read_bytes()
        if path.parent.name == "blobs":
            assert path.name in (git_sha1(kept), hashlib.sha256(kept).hexdigest())
        elif path.parent.name == "refs":
            assert kept.decode() == hub.commit
        else:
            assert path.parent == tmp_path / "home" / "hub" / "models--org--tiny" / "snapshots" / hub.commit
            assert kept == hub.files[path.name]


def with_listing(hub: StubHub, monkeypatch: pytest.MonkeyPatch, change: Callable[[dict[str, Any]], object]) -> None:
    """Let the hub's listing be another one."""
    made = hub.listing()
    for entry in made["siblings"]:
        change(entry)
    monkeypatch.setattr(hub, "listing", lambda: made)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.model", WEIGHTS])
def test_other_bytes_than_those_listed(name: str, hub: StubHub, tmp_path: Path) -> None:
    right = hub.files[name]
    hub.sends[name] = right[:-1] + bytes([right[-1] ^ 1])
    refused(hub, tmp_path, name, "checksum", "deleted")
    assert hub.fetched().count(name) == 1  # nothing says that another attempt would go better
    hub.sends.clear()
    open_model(resolve(), None)


@pytest.mark.parametrize("beginning", [True, False])
def test_a_part_whose_bytes_are_not_of_this_file(beginning: bool, hub: StubHub, tmp_path: Path) -> None:
    blobs = tmp_path / "home" / "hub" / "models--org--tiny" / "blobs"
    blobs.mkdir(parents=True)
    right = hub.files[WEIGHTS]
    part = blobs / f"{hashlib.sha256(right).hexdigest()}.hybrid.incomplete"
    part.write_bytes(b"x" * 3000 if beginning else b"x" * len(right))
    open_model(resolve(), None)
    assert hub.sent_bytes[WEIGHTS] == len(right) + (len(right) - 3000 if beginning else 0)
    assert_right(hub, tmp_path)


def test_bytes_that_change_between_two_attempts(hub: StubHub, tmp_path: Path) -> None:
    hub.cuts[WEIGHTS] = [3000]
    hub.sends[WEIGHTS] = bytes(len(hub.files[WEIGHTS]))
    refused(hub, tmp_path, WEIGHTS, "checksum")


@pytest.mark.parametrize("shift", [-1000, 1000])
def test_more_or_fewer_bytes_than_listed(shift: int, hub: StubHub, tmp_path: Path) -> None:
    right = hub.files[WEIGHTS]
    hub.sends[WEIGHTS] = right[:shift] if shift < 0 else right + b"x" * shift
    one_line(ModelFileError, resolve, f"{len(right) + shift:,} bytes where {len(right):,} are listed")
    assert hub.sent_bytes[WEIGHTS] == len(right) + shift
    assert not (tmp_path / "home/hub/models--org--tiny/blobs" / hashlib.sha256(right).hexdigest()).exists()


@pytest.mark.parametrize("endless", ["config.json", WEIGHTS])
def test_a_file_without_end(endless: str, hub: StubHub, tmp_path: Path) -> None:
    hub.endless = endless
    refused(hub, tmp_path, endless, "checksum")  # of as many bytes as are listed


def test_a_listing_without_end(hub: StubHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hybrid.source.hub_repository._LISTING_BYTES", 100_000)
    hub.endless = "/revision/main"
    one_line(ModelFileError, resolve, NAME, "more than 100000 bytes")
    hub.endless = ""
    monkeypatch.setattr("hybrid.source.hub_repository._LISTING_BYTES", 100)
    one_line(ModelFileError, resolve, NAME, "its listing has")


@pytest.mark.parametrize("value", [-5, "x", None, 1.5, [], 2**62])
def test_sizes_that_are_none(value: object, hub: StubHub) -> None:
    hub.sizes["config.json"] = value
    one_line(ModelFileError, resolve, NAME, "not that of a hub", "ValueError")


def test_settings_as_large_as_weights(hub: StubHub) -> None:
    hub.sizes["config.json"] = 2**40
    one_line(ModelFileError, resolve, NAME, "more than the 256 MiB")
    assert hub.fetched() == []


@pytest.mark.parametrize("answer", [b"[" * 200_000, b'{"a":' * 100_000, b"\xff", b'{"sha": "%s"}' % (b"a" * 40)])
def test_listings_that_cannot_be_read(answer: bytes, hub: StubHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.hub_stub.json.dumps", lambda _: answer.decode("latin-1"))
    one_line(ModelFileError, resolve, NAME, "not that of a hub")


def test_files_without_a_name(hub: StubHub, monkeypatch: pytest.MonkeyPatch) -> None:
    with_listing(hub, monkeypatch, lambda entry: entry.update(rfilename=None))
    one_line(ModelFileError, resolve, NAME, "no weights")


@pytest.mark.parametrize("tag", ['"../../../../evil"', '"/evil"', "", '"\x1b[2J"', '"' + "a" * 41 + '"'])
def test_a_tag_that_is_no_checksum(tag: str, hub: StubHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    hub.headers = {"ETag": tag, "X-Linked-Etag": tag, "X-Repo-Commit": "../../evil"}
    open_model(resolve(), None)  # nobody asks for it where the listing has checksums
    assert_right(hub, tmp_path)
    for path in (tmp_path / "home").rglob("snapshots/*/*"):
        path.unlink()
    with_listing(hub, monkeypatch, lambda entry: entry.update(blobId=tag))
    refused(hub, tmp_path, "no checksum")


@pytest.mark.parametrize("digest", ["git", "sha1", "sha256"])
def test_the_tag_is_the_checksum_where_the_listing_has_none(
    digest: str, hub: StubHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = hub.files["config.json"]
    del hub.files["tokenizer.model"]
    tag = git_sha1(config) if digest == "git" else hashlib.new(digest, config).hexdigest()
    # One id for files of several sizes is none.
    with_listing(hub, monkeypatch, lambda entry: entry.update(blobId="b" * 40))
    hub.headers = {"ETag": f'W/"{tag}"'}
    open_model(resolve(), None)
    assert_right(hub, tmp_path)
    hub.sends["config.json"] = config[:-1] + b" "
    for path in (tmp_path / "home").rglob("snapshots/*/*"):
        path.unlink()
    refused(hub, tmp_path, "config.json", "checksum")


@pytest.mark.parametrize("digest", ["../../../evil", "", 7, None])
def test_a_checksum_of_weights_that_is_none(
    digest: object, hub: StubHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with_listing(hub, monkeypatch, lambda entry: "lfs" in entry and entry["lfs"].update(sha256=digest))
    hub.sends[WEIGHTS] = bytes(len(hub.files[WEIGHTS]))
    refused(hub, tmp_path, WEIGHTS, "checksum")
    hub.sends.clear()
    open_model(resolve(), None)  # the hub gives the right one with the file
    assert_right(hub, tmp_path)


@pytest.mark.parametrize("told", ["bytes 0-9/10", "bytes 5-9/10", "bytes x", "", "bytes 3000-{last}/99"])
def test_other_ranges_than_asked_for(told: str, hub: StubHub, tmp_path: Path) -> None:
    hub.cuts["config.json"] = [100]
    hub.headers = {"Content-Range": told.format(last=len(hub.files[WEIGHTS]) - 1)}
    one_line(ModelFileError, resolve, NAME, "config.json", "other bytes than 100 to")


@pytest.mark.parametrize("address", ["file:///etc/passwd?", "ftp://localhost/", "http://me:word@localhost/", "\x7f"])
def test_where_no_file_can_lie(address: str, hub: StubHub, tmp_path: Path) -> None:
    hub.leads_to = address
    refused(hub, tmp_path, "not that of a hub")


def test_circles(hub: StubHub, tmp_path: Path) -> None:
    hub.leads_to = f"/{NAME}/resolve/{hub.commit}/"
    refused(hub, tmp_path, "circles")
    assert hub.fetched() == ["config.json"] * (_MOST_REDIRECTS + 1)


def test_compressed_answers(hub: StubHub, tmp_path: Path) -> None:
    hub.headers = {"Content-Encoding": "gzip"}
    refused(hub, tmp_path, "compressed")


@pytest.mark.parametrize("token", ["hf_a\r\nX-Evil: 1", "hf_ä", "two words"])
def test_a_token_that_cannot_be_sent(token: str, hub: StubHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.get_token", lambda: token)
    message = one_line(ModelFileError, resolve, "HF_TOKEN")
    assert token not in message
    assert hub.requests == []


def test_the_token_stays_at_the_hub(hub: StubHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    hub.leads_to = hub.storage  # another host for every file
    resolve()
    tokens = {(request.path.partition("/")[2].partition("/")[0], request.token) for request in hub.requests}
    assert tokens == {("api", "Bearer hf_secret"), ("org", "Bearer hf_secret"), ("storage", None)}


def test_a_proxy(hub: StubHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    address = hub.url.removeprefix("http://")
    monkeypatch.setenv("http_proxy", f"http://me:a%40b@{address}")
    monkeypatch.setenv("no_proxy", "localhost,127.0.0.1")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://hub.invalid")
    open_model(resolve(), None)
    sent = {request.proxy for request in hub.requests if not request.path.startswith("/storage/")}
    assert sent == {"Basic " + base64.b64encode(b"me:a@b").decode()}
    monkeypatch.setenv("http_proxy", "socks5://127.0.0.1:1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "other"))
    one_line(ModelFileError, resolve, "socks5://127.0.0.1", "only http:// ones")


@pytest.mark.parametrize("endpoint", ["hub", "ftp://hub", "http://", "http://a:b@hub", "http://[", "http://hub:99999"])
def test_endpoints_that_are_none(endpoint: str, hub: StubHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", endpoint)
    one_line(ModelFileError, resolve, NAME, "HF_ENDPOINT")
