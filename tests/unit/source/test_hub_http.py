"""Bounds on a hub: how long to wait for it, how much to take from it, and where it may lead."""

import socket
import ssl

import pytest

from hybrid.source import hub_http
from hybrid.source.hub_errors import BACKOFF_S, NoHub, TooSlow, Unreachable, with_retries
from hybrid.source.hub_http import LEAST_BYTES, WINDOW_S, HubClient, Pace, PacedReader, _follow


class Clock:
    """Seconds that pass when they are told to."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def test_bytes_that_trickle_are_given_up() -> None:
    clock = Clock()
    pace = Pace(clock)
    pace.allow(1 << 30, None)
    for _ in range(int(WINDOW_S) - 1):  # one byte a second
        clock.now_s += 1
        assert 0 < pace.seconds_left() <= WINDOW_S
        pace.count(1)
    clock.now_s += 2
    with pytest.raises(TooSlow):
        pace.seconds_left()


def test_bytes_that_come_steadily_have_all_the_time() -> None:
    clock = Clock()
    pace = Pace(clock)
    pace.allow(1 << 30, None)
    for _ in range(1000):
        clock.now_s += WINDOW_S - 1
        pace.seconds_left()
        pace.count(LEAST_BYTES)
    pace.allow(1 << 30, total_s=40.0)
    for _ in range(2):
        pace.seconds_left()
        clock.now_s += WINDOW_S - 5
        pace.count(LEAST_BYTES)
    with pytest.raises(TooSlow):
        pace.seconds_left()


def test_a_head_has_a_bound() -> None:
    pace = Pace()
    pace.count(1 << 20)
    with pytest.raises(NoHub):
        pace.count(1)


def test_silence_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_http, "WINDOW_S", 0.01)
    ours, theirs = socket.socketpair()
    with ours, theirs, PacedReader(ours, Pace()) as reader, pytest.raises(TooSlow):
        reader.readinto(bytearray(1))


def test_a_hub_that_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_http, "WINDOW_S", 0.01)
    with socket.create_server(("127.0.0.1", 0)) as server:
        client = HubClient(f"http://127.0.0.1:{server.getsockname()[1]}", None)
        with pytest.raises(TooSlow), client.get("/"):
            pass


def test_slowness_is_tried_again_only_after_progress() -> None:
    attempts: list[int] = []

    def fail() -> None:
        attempts.append(1)
        raise TooSlow("x")

    with pytest.raises(TooSlow):
        with_retries(fail, lambda error: True, lambda seconds: None)
    assert len(attempts) == 1
    progress = iter([True, True, False])
    with pytest.raises(TooSlow):
        with_retries(fail, lambda error: True, lambda seconds: None, lambda: next(progress))
    assert len(attempts) == 4


def test_a_broken_connection_is_tried_again() -> None:
    pauses: list[float] = []

    def fail() -> None:
        raise Unreachable("x")

    with pytest.raises(Unreachable):
        with_retries(fail, lambda error: True, pauses.append)
    assert tuple(pauses) == BACKOFF_S


def test_tls_is_never_left() -> None:
    assert _follow("https://a/b", "/c") == "https://a/c"
    assert _follow("https://a/b", "https://c:1/d") == "https://c:1/d"
    assert _follow("http://a/b", "https://c/d") == "https://c/d"
    for location in ("http://a/c", "ftp://a/c", "", "https://u@a/"):
        with pytest.raises(ValueError, match=r"without TLS|no address"):
            _follow("https://a/b", location)


def test_certificates_are_checked() -> None:
    context = hub_http._tls()
    assert context.check_hostname
    assert context.verify_mode is ssl.CERT_REQUIRED
