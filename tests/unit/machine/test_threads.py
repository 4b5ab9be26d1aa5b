"""Threads: physical cores within affinity and quota, read from files as the kernel writes them."""

import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from hybrid.errors import UsageError
from hybrid.machine import threads


def machine(
    monkeypatch: pytest.MonkeyPatch,
    folder: Path,
    siblings: Mapping[int, str],
    allowed: set[int] | None = None,
    quota: str | None = None,
) -> int:
    """`default_threads` on a machine with these siblings of each CPU, this affinity and this cpu.max."""
    for cpu, text in siblings.items():
        topology = folder / f"sys/devices/system/cpu/cpu{cpu}/topology"
        topology.mkdir(parents=True)
        (topology / "thread_siblings_list").write_text(text + "\n")
    if quota is not None:
        (folder / "sys/fs/cgroup").mkdir(parents=True)
        (folder / "sys/fs/cgroup/cpu.max").write_text(quota)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(siblings) if allowed is None else allowed)
    return threads.default_threads(folder)


SMT = {0: "0,4", 1: "1,5", 2: "2,6", 3: "3,7", 4: "0,4", 5: "1,5", 6: "2,6", 7: "3,7"}
PLAIN = {cpu: str(cpu) for cpu in range(4)}


@pytest.mark.parametrize(
    ("siblings", "allowed", "quota", "expected"),
    [
        (SMT, None, None, 4),
        (PLAIN, None, None, 4),
        (SMT, {0, 4}, None, 1),
        (SMT, {0, 1, 4}, None, 2),
        (PLAIN, None, "max 100000\n", 4),
        (PLAIN, None, "200000 100000\n", 2),
        (PLAIN, None, "250000 100000\n", 2),
        (PLAIN, None, "50000 100000\n", 1),
        (SMT, None, "600000 100000\n", 4),
        (PLAIN, None, "", 4),
        (PLAIN, None, "many few\n", 4),
        (PLAIN, None, "100000 0\n", 4),
    ],
)
def test_threads_are_the_cores_that_may_be_used(
    siblings: dict[int, str],
    allowed: set[int] | None,
    quota: str | None,
    expected: int,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    assert machine(monkeypatch, tmp_path, siblings, allowed, quota) == expected


def test_cpus_without_a_topology_count_each(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert machine(monkeypatch, tmp_path, {}, {0, 1, 2}) == 3


def test_this_machine_has_at_least_one_and_no_more_than_its_cpus() -> None:
    assert 1 <= threads.default_threads() <= len(os.sched_getaffinity(0))


def test_more_threads_than_cpus_are_as_many_as_the_cpus_and_told() -> None:
    cpus = len(os.sched_getaffinity(0))
    assert [threads.resolve_threads(asked) for asked in (1, cpus, cpus + 1, 10**12)] == [1, cpus, cpus, cpus]
    (line,) = threads.threads_warning(cpus + 1)
    assert line.startswith(f"--threads {cpus + 1}: this process may use")
    assert threads.threads_warning(cpus) == threads.threads_warning(None) == ()


def test_no_threads_are_refused() -> None:
    with pytest.raises(UsageError, match="--threads 0"):
        threads.resolve_threads(0)
