"""Requests to a hub. Whom we ask, who gets the token, how long we wait and how much we take is decided here.

A hub answers for large files with the address of another host. That one never sees the token, an answer over TLS never
leads away from TLS, and nothing that an answer says is believed before it was checked.
"""

import base64
import http.client
import importlib
import io
import re
import socket
import ssl
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import SplitResult, unquote, urljoin, urlsplit

from hybrid.source.hub_errors import NoHub, Refused, TooSlow, Unreachable, reason
from hybrid.version import __version__

WINDOW_S = 30.0  # for the head of an answer, and then for every LEAST_BYTES of it
LEAST_BYTES = 1 << 16

_PIECE_BYTES = 1 << 18
_HEAD_BYTES = 1 << 20
_MOST_REDIRECTS = 5
_REDIRECTS = (301, 302, 303, 307, 308)
_ALWAYS = {"User-Agent": f"hybrid-run/{__version__}", "Accept-Encoding": "identity", "Connection": "close"}
_DEFAULT_PORTS = {"http": 80, "https": 443}
_CONTENT_RANGE = re.compile(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19})")


class Pace:
    """The patience with one answer's bytes, and the most of them to take in all.

    Each LEAST_BYTES have WINDOW_S to arrive in; all have `total_s` where that is given.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._end_s = float("inf")
        self._window_end_s = clock() + WINDOW_S
        self._window_bytes = 0
        self._bytes_left = _HEAD_BYTES

    def allow(self, most_bytes: int, total_s: float | None) -> None:
        """Let this many bytes more come, by now at the latest plus `total_s`."""
        self._bytes_left += most_bytes
        self._end_s = self._end_s if total_s is None else self._clock() + total_s

    def seconds_left(self) -> float:
        """Give the seconds to wait for the next byte. Raises TooSlow."""
        left = min(self._window_end_s, self._end_s) - self._clock()
        if left <= 0:
            raise TooSlow(f"less than {LEAST_BYTES >> 10} KiB in {WINDOW_S:g} s")
        return left

    def count(self, nbytes: int) -> None:
        """Take note of bytes that came. Raises NoHub for too many."""
        self._bytes_left -= nbytes
        if self._bytes_left < 0:
            raise NoHub("it goes on and on")
        self._window_bytes += nbytes
        if self._window_bytes >= LEAST_BYTES:
            self._window_bytes = 0
            self._window_end_s = self._clock() + WINDOW_S


class PacedReader(io.RawIOBase):
    """The bytes of a connection, for as long as they keep pace."""

    def __init__(self, connection: socket.socket, pace: Pace) -> None:
        self._connection = connection
        self._raw = connection.makefile("rb", buffering=0)
        self._pace = pace

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        self._connection.settimeout(self._pace.seconds_left())
        try:
            nbytes = self._raw.readinto(buffer)
        except TimeoutError:
            self._pace.seconds_left()
            raise
        self._pace.count(nbytes or 0)
        return nbytes

    def close(self) -> None:
        self._raw.close()
        super().close()


class _PacedSocket:
    """The part of a socket that http.client needs."""

    def __init__(self, connection: socket.socket, pace: Pace) -> None:
        self._connection = connection
        self._pace = pace
        self.sendall, self.close = connection.sendall, connection.close

    def makefile(self, mode: str) -> io.BufferedReader:
        assert mode == "rb"
        return io.BufferedReader(PacedReader(self._connection, self._pace))


@dataclass(frozen=True)
class Answer:
    """An answer of status 200 or 206. `etag` is what the hub itself says of the bytes, wherever they come from."""

    status: int
    headers: http.client.HTTPMessage
    etag: str
    _response: http.client.HTTPResponse
    _pace: Pace

    @property
    def nbytes(self) -> int | None:
        """Give the number of bytes to come, where the answer says it."""
        return self._response.length

    @property
    def content_range(self) -> tuple[int, int, int] | None:
        """The first byte, the last one and how many the whole file has, of an answer that is a part."""
        found = _CONTENT_RANGE.fullmatch(self.headers.get("Content-Range", ""))
        return (int(found[1]), int(found[2]), int(found[3])) if found else None

    def pieces(self, most_bytes: int, total_s: float | None = None) -> Iterator[bytes]:
        """The bytes as they come, `most_bytes` at most. Raises HubError."""
        self._pace.allow(2 * most_bytes, total_s)  # with what chunks have around them
        left = most_bytes
        while left:
            with _network():
                piece = self._response.read1(min(left, _PIECE_BYTES))
            if not piece:
                return
            left -= len(piece)
            yield piece


class HubClient:
    """Asks one hub, with the token if there is one."""

    def __init__(self, endpoint: str, token: str | None) -> None:
        """Raises NoHub for an endpoint that is no address, and for a token that cannot be sent."""
        self._endpoint = endpoint
        with _network():
            self._hub = _origin(urlsplit(endpoint))
        if token is not None and not re.fullmatch(r"[!-~]+", token):
            raise NoHub("the token, HF_TOKEN or what was saved on logging in, has characters that no token has")
        self._token = token

    @contextmanager
    def get(self, path: str, byte_range: tuple[int, int] | None = None) -> Iterator[Answer]:
        """Ask for a path below the endpoint, or for bytes [start, end) of it, wherever it leads. Raises HubError."""
        asked = {} if byte_range is None else {"Range": f"bytes={byte_range[0]}-{byte_range[1] - 1}"}
        url, etag = self._endpoint + path, ""
        for _ in range(_MOST_REDIRECTS + 1):
            pace = Pace()
            with _network():
                response = self._ask(url, asked, pace)
            try:
                headers = response.headers
                etag = etag or headers.get("X-Linked-Etag") or headers.get("ETag") or ""
                if response.status in _REDIRECTS:
                    with _network():
                        url = _follow(url, headers.get("Location", ""))
                    continue
                if response.status not in (200, 206):
                    raise Refused(response.status, headers.get("X-Error-Code", ""))
                if headers.get("Content-Encoding", "identity") != "identity":
                    raise NoHub("it is compressed")
                yield Answer(response.status, headers, etag, response, pace)
                return
            finally:
                response.close()
        raise NoHub("it leads in circles")

    def _ask(self, url: str, headers: Mapping[str, str], pace: Pace) -> http.client.HTTPResponse:
        parts = urlsplit(url)
        scheme, host, port = origin = _origin(parts)
        target = parts.path + (f"?{parts.query}" if parts.query else "")
        sent = {**_ALWAYS, **headers}
        if self._token is not None and origin == self._hub:
            sent["Authorization"] = f"Bearer {self._token}"
        proxy = _proxy(scheme, host)
        address, authorization = ((host, port), {}) if proxy is None else _proxy_address(proxy)
        connection: http.client.HTTPConnection
        if scheme == "https":
            connection = http.client.HTTPSConnection(*address, timeout=WINDOW_S, context=_tls())
            if proxy is not None:
                connection.set_tunnel(host, port, authorization)
        else:
            connection = http.client.HTTPConnection(*address, timeout=WINDOW_S)
            if proxy is not None:
                target, sent = url, sent | authorization
        try:
            connection.connect()
            connection.sock = paced = _PacedSocket(connection.sock, pace)
            connection.request("GET", target or "/", headers=sent)
            response = connection.getresponse()
        except BaseException:
            connection.close()
            raise
        paced.close()  # the response has a hold of it until it is closed itself
        return response


@contextmanager
def _network() -> Iterator[None]:
    """Make HubErrors of what the network and http.client raise."""
    try:
        yield
    except TimeoutError:
        raise TooSlow(f"no answer within {WINDOW_S:g} s") from None
    except http.client.IncompleteRead:
        raise Unreachable("the connection broke") from None
    except (http.client.RemoteDisconnected, OSError) as error:
        raise Unreachable(reason(error)) from None
    except (http.client.HTTPException, ValueError) as error:  # bad addresses are ValueErrors
        raise NoHub(reason(error)) from None


def _origin(parts: SplitResult) -> tuple[str, str, int]:
    """Scheme, host and port of an address that may be asked. Raises ValueError."""
    if parts.scheme not in _DEFAULT_PORTS or not parts.hostname or parts.username is not None:
        raise ValueError(f"{parts.scheme}://{parts.hostname or ''} is no address of a hub")
    return parts.scheme, parts.hostname, parts.port or _DEFAULT_PORTS[parts.scheme]


def _follow(url: str, location: str) -> str:
    """The address that an answer from `url` leads to. Raises ValueError for one that must not be asked."""
    target = urljoin(url, location)
    scheme, host, _ = _origin(urlsplit(target))
    if not location or (urlsplit(url).scheme == "https" and scheme != "https"):
        raise ValueError(f"it leads to {scheme}://{host}, without TLS")
    return target


def _tls() -> ssl.SSLContext:
    """Trust whom this system trusts, and the usual authorities where it comes without them."""
    context = ssl.create_default_context()
    with suppress(ImportError):
        context.load_verify_locations(importlib.import_module("certifi").where())
    return context


def _proxy(scheme: str, host: str) -> str | None:
    """The user's proxy for a host, as https_proxy, http_proxy, all_proxy and no_proxy say."""
    proxies = urllib.request.getproxies()
    proxy = proxies.get(scheme) or proxies.get("all")
    return proxy if proxy and not urllib.request.proxy_bypass(host) else None


def _proxy_address(proxy: str) -> tuple[tuple[str, int], dict[str, str]]:
    """Host and port of a proxy, and what it wants to be told. Raises ValueError."""
    parts = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    if parts.scheme != "http" or not parts.hostname:
        raise ValueError(f"the proxy {parts.scheme}://{parts.hostname or ''} cannot be used, only http:// ones")
    if parts.username is None:
        return (parts.hostname, parts.port or 80), {}
    user = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
    return (parts.hostname, parts.port or 80), {
        "Proxy-Authorization": f"Basic {base64.b64encode(user.encode()).decode()}"
    }
