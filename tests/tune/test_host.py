"""The cost of a CPU kernel's launch, measured on a machine that does other things too."""

from collections.abc import Sequence

import pytest

from offload.calibrate import host
from offload.calibrate.host import launch_time
from offload.host.base import HostColumns
from offload.spec.arrays import FloatArray


class BusyMachine:
    """A host backend with a clock of its own: one launch in ten takes 5 µs, the others 8 ms."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self._launches = 0

    def group(self, columns: Sequence[HostColumns]) -> "BusyMachine":
        return self

    def multiply(self, x: FloatArray, outputs: Sequence[FloatArray]) -> None:
        self._launches += 1
        self.now_s += 8e-3 if self._launches % 10 else 5e-6


def test_launches_that_others_get_in_the_way_of_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = BusyMachine()
    monkeypatch.setattr(host, "perf_counter", lambda: machine.now_s)
    assert launch_time(machine) == pytest.approx(5e-6)
