"""Threads that wait for each other are not left on one CPU. Which CPU each is on is made up; the rest is real."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from offload import threads_apart
from offload.threads_apart import ThreadsApart

pytestmark = pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="threads can only be moved on Linux")


class Pool:
    """Two threads that wait, and where the kernel has put them and the one that made them."""

    def __init__(self) -> None:
        self.over = threading.Event()
        self.threads = [threading.Thread(target=self.over.wait, daemon=True) for _ in range(2)]
        self.cpus: dict[int, int] = {}

    def start(self) -> None:
        for thread in self.threads:
            thread.start()

    @property
    def ids(self) -> list[int]:
        workers = sorted(thread.native_id for thread in self.threads if thread.native_id is not None)
        return [threading.get_native_id(), *workers]


@pytest.fixture
def pool(monkeypatch: pytest.MonkeyPatch) -> Iterator[Pool]:
    """On a machine of four CPUs, where a thread runs on the CPU that it was last confined to."""
    made = Pool()

    def confine(thread: int, cpus: set[int]) -> None:
        if len(cpus) == 1:
            (made.cpus[thread],) = cpus

    monkeypatch.setattr(threads_apart, "cpu_of", lambda thread: made.cpus[thread])
    monkeypatch.setattr(os, "sched_getaffinity", lambda thread: {0, 1, 2, 3})
    monkeypatch.setattr(os, "sched_setaffinity", confine)
    yield made
    made.over.set()
    for thread in made.threads:
        thread.join()


@pytest.mark.parametrize("cpus", [(0, 1, 2), (0, 0, 1), (1, 1, 1), (3, 2, 3)])
def test_threads_that_share_a_cpu_are_moved_apart_and_others_stay(pool: Pool, cpus: tuple[int, int, int]) -> None:
    apart = ThreadsApart()
    apart.learn(pool.start)
    pool.cpus = dict(zip(pool.ids, cpus, strict=True))
    apart.look()
    after = [pool.cpus[thread] for thread in pool.ids]
    assert len(set(after)) == 3
    assert all(new == old for i, (new, old) in enumerate(zip(after, cpus, strict=True)) if old not in cpus[:i])


def test_it_does_not_look_again_at_once(pool: Pool) -> None:
    apart = ThreadsApart()
    apart.learn(pool.start)
    pool.cpus = dict.fromkeys(pool.ids, 1)
    apart.look()
    pool.cpus = dict.fromkeys(pool.ids, 2)
    apart.look()
    assert set(pool.cpus.values()) == {2}


def test_where_a_thread_runs_is_read_from_the_kernel() -> None:
    assert threads_apart.cpu_of(threading.get_native_id()) in os.sched_getaffinity(0)


@contextmanager
def confined(cpus: set[int]) -> Iterator[None]:
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cpus)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def test_fewer_cpus_than_threads_are_no_error() -> None:
    pool, apart = Pool(), ThreadsApart()
    with confined({min(os.sched_getaffinity(0))}):
        apart.learn(pool.start)
        apart.look()
        assert {threads_apart.cpu_of(thread) for thread in pool.ids} == os.sched_getaffinity(0)
    pool.over.set()
