"""A small Hugging Face hub on the loopback: listings, files with ranges, redirects to storage, refusals, bad lines."""

import hashlib
import json
import socket
import struct
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

from tests.hf_models import random_weights, tiny_config, write_model

STORED = (".safetensors", ".onnx", ".onnx_data", ".bin")  # kept in large-file storage, as on the real hub


@dataclass(frozen=True)
class Request:
    """One request of a client."""

    method: str
    path: str
    range: str | None
    token: str | None
    proxy: str | None = None


@dataclass
class StubHub:
    """One repository and its moods. Tests change the fields as they go.

    `cuts` breaks connections: for a file, how many bytes each of the next answers may have. `busy` are statuses of the
    next answers of any kind. `refusal` is the status and error code of all files, `hidden` that of the listing.
    """

    repository: str
    files: dict[str, bytes]
    commit: str = "a" * 40
    revisions: tuple[str, ...] = ("main",)
    cuts: dict[str, list[int]] = field(default_factory=dict)
    reset: bool = False  # break with a reset, not with an end
    busy: list[int] = field(default_factory=list)
    refusal: tuple[int, str] | None = None
    hidden: tuple[int, str] | None = None
    ignores_ranges: bool = False
    sizes: dict[str, Any] = field(default_factory=dict)  # lies of the listing
    sends: dict[str, bytes] = field(default_factory=dict)  # other bytes than those that are listed
    leads_to: str = ""  # where files are said to lie
    headers: dict[str, str] = field(default_factory=dict)  # of files, instead of the right ones
    endless: str = ""  # paths that end so have no end
    requests: list[Request] = field(default_factory=list)
    sent_bytes: dict[str, int] = field(default_factory=dict)

    def __enter__(self) -> "StubHub":
        hub = self

        class Handler(_Handler):
            stub = hub

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def url(self) -> str:
        """Give the value of HF_ENDPOINT."""
        return f"http://127.0.0.1:{self._server.server_port}"

    @property
    def storage(self) -> str:
        """Another host, as far as clients can tell."""
        return f"http://localhost:{self._server.server_port}/storage/"

    def fetched(self) -> list[str]:
        """The files whose bytes were sent, in order, each time."""
        paths = [request.path for request in self.requests if request.method == "GET"]
        return [path.partition(f"/{self.commit}/")[2] for path in paths if "/resolve/" in path]

    def listing(self) -> dict[str, Any]:
        """The answer of /api/models/NAME?blobs=true."""
        siblings = []
        for name, data in self.files.items():
            size = self.sizes.get(name, len(data))
            entry: dict[str, Any] = {"rfilename": name, "size": size, "blobId": git_sha1(data)}
            if name.endswith(STORED):
                sha256 = hashlib.sha256(data).hexdigest()
                pointer = b"version https://git-lfs.github.com/spec/v1\n"
                pointer += f"oid sha256:{sha256}\nsize {len(data)}\n".encode()
                entry["blobId"] = git_sha1(pointer)
                entry["lfs"] = {"sha256": sha256, "size": size, "pointerSize": len(pointer)}
            siblings.append(entry)
        return {"_id": "1", "id": self.repository, "modelId": self.repository, "sha": self.commit, "private": False,
                "tags": [], "downloads": 0, "likes": 0, "siblings": siblings}  # fmt: skip


def git_sha1(data: bytes) -> str:
    """Give Git's name of a file."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def tiny_files(folder: Path, shards: int = 3) -> dict[str, bytes]:
    """The files of a tiny model that opens, and others that nobody needs."""
    config = tiny_config()
    write_model(folder, config, random_weights(config), shards=shards)
    needed = {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
    others = ("README.md", "pytorch_model.bin", "consolidated.safetensors", "tiny.Q4_0.gguf", "original/params.json")
    return needed | {"tokenizer.model": b"pieces"} | dict.fromkeys(others, b"nobody needs this")


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # headers and body are two writes
    stub: StubHub

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        stub, path = self.stub, unquote(urlsplit(self.path).path)
        token, proxy = self.headers["Authorization"], self.headers["Proxy-Authorization"]
        stub.requests.append(Request(self.command, path, self.headers["Range"], token, proxy))
        if stub.busy:
            return self._send(stub.busy.pop(0))
        if stub.endless and path.endswith(stub.endless):
            return self._go_on_and_on()
        api, resolve = f"/api/models/{stub.repository}", f"/{stub.repository}/resolve/"
        if path.startswith("/storage/"):
            return self._file(path.removeprefix("/storage/"), {})
        if path.startswith(api):
            revision = path.removeprefix(api).removeprefix("/revision/") or "main"
            if stub.hidden:
                return self._refuse(*stub.hidden)
            if revision not in (*stub.revisions, stub.commit):
                return self._refuse(404, "RevisionNotFound")
            return self._send(200, json.dumps(stub.listing()).encode(), {"Content-Type": "application/json"})
        if not path.startswith(resolve):
            return self._refuse(404, "RepoNotFound")
        name = path.removeprefix(resolve).partition("/")[2]
        if stub.refusal:
            return self._refuse(*stub.refusal)
        if name not in stub.files:
            return self._refuse(404, "EntryNotFound")
        data = stub.files[name]
        headers = {"X-Repo-Commit": stub.commit, "ETag": f'"{git_sha1(data)}"', **stub.headers}
        if stub.leads_to:
            return self._send(302, b"", {**headers, "Location": stub.leads_to + name})
        if name.endswith(STORED):
            linked = {"X-Linked-Etag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Linked-Size": str(len(data))}
            return self._send(302, b"", {**headers, **linked, **stub.headers, "Location": stub.storage + name})
        return self._file(name, headers)

    def _file(self, name: str, headers: Mapping[str, str]) -> None:
        stub, start = self.stub, 0
        data = stub.sends.get(name, stub.files[name])
        asked = self.headers["Range"]
        if asked and not stub.ignores_ranges:
            start = int(asked.removeprefix("bytes=").partition("-")[0])
            headers = {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}", **headers}
        cuts = stub.cuts.get(name)
        body = data[start:]
        part = body[: cuts.pop(0)] if cuts and self.command == "GET" else body
        if self.command == "GET":
            stub.sent_bytes[name] = stub.sent_bytes.get(name, 0) + len(part)
        self._send(206 if start else 200, part, {**headers, "Content-Length": str(len(body))})
        if len(part) < len(body):
            self._break_off()

    def _break_off(self) -> None:
        self.close_connection = True
        self.wfile.flush()
        if self.stub.reset:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()

    def _go_on_and_on(self) -> None:
        self.close_connection = True
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        with suppress(OSError):
            while True:
                self.wfile.write(b"10000\r\n" + b" " * 0x10000 + b"\r\n")

    def _refuse(self, status: int, code: str) -> None:
        self._send(status, b"", {"X-Error-Code": code, "X-Error-Message": code})

    def _send(self, status: int, body: bytes = b"", headers: Mapping[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def connect(monkeypatch: pytest.MonkeyPatch, hub: StubHub, home: Path) -> None:
    """Make us, and huggingface_hub, talk to a stub and keep the cache in `home`.

    The library reads the environment when it is imported, which another test may have done already.
    """
    from huggingface_hub import constants

    # For downloads of its own, which some tests compare with.
    template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    for name, value in {
        "ENDPOINT": hub.url,
        "HUGGINGFACE_CO_URL_TEMPLATE": template,
        "HF_HOME": str(home),
        "HF_HUB_CACHE": str(home / "hub"),
        "HF_TOKEN_PATH": str(home / "token"),
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_XET": True,
        "HF_HUB_DISABLE_TELEMETRY": True,
    }.items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setattr("hybrid.source.hub_http._PIECE_BYTES", 1000)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
