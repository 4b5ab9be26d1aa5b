"""A virtual clock for engines that work side by side: deterministic, without threads and without sleeping."""

import heapq
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import count


@dataclass(eq=False)
class Operation:
    """Work for one engine, which may start when the operations in `after` have finished."""

    track: str
    name: str
    engine: str
    duration_s: float
    effect: Callable[[], None]
    after: tuple["Operation", ...]
    queued_s: float
    number: int
    start_s: float = 0.0
    finish_s: float | None = None  # None: not scheduled yet

    @property
    def ready_s(self) -> float | None:
        """Give the time when its inputs are there; None while that is not known."""
        ready_s = self.queued_s
        for operation in self.after:
            if operation.finish_s is None:
                return None
            ready_s = max(ready_s, operation.finish_s)
        return ready_s


class VirtualClock:
    """Schedules operations lazily: time passes only when the host waits or says that it passes.

    An engine takes the operation that was ready first. The effects run in the order of the finish times, so
    an operation that should have waited for another finds what is in memory before the other's effect.
    """

    def __init__(self) -> None:
        self.now_s = 0.0
        self._numbers = count()
        self._waiting: list[Operation] = []
        self._running: list[tuple[float, int, Operation]] = []  # a heap by finish time
        self._engine_free_s: dict[str, float] = {}

    def queue(
        self,
        track: str,
        name: str,
        engine: str,
        duration_s: float,
        effect: Callable[[], None],
        after: Iterable[Operation],
    ) -> Operation:
        """Queue an operation at the present time."""
        number = next(self._numbers)
        operation = Operation(track, name, engine, duration_s, effect, tuple(after), self.now_s, number)
        self._waiting.append(operation)
        return operation

    def wait_for(self, operations: Iterable[Operation]) -> None:
        """Let time pass until `operations` have finished, and run every effect up to then."""
        for operation in operations:
            while operation.finish_s is None:
                self._schedule(*self._next())
            self.now_s = max(self.now_s, operation.finish_s)
        self._catch_up()

    def pass_time(self, seconds: float) -> None:
        """Let the host be busy for `seconds`, and run every effect up to then."""
        self.now_s += seconds
        self._catch_up()

    def finish(self) -> None:
        """Let time pass until nothing is left to do."""
        self.wait_for(list(self._waiting) + [operation for _, _, operation in self._running])

    def _catch_up(self) -> None:
        # Other engines work meanwhile. Nothing that the host has yet to queue can start before now.
        while self._waiting:
            operation, start_s = self._next()
            if start_s >= self.now_s:
                break
            self._schedule(operation, start_s)
        while self._running and self._running[0][0] <= self.now_s:
            operation = heapq.heappop(self._running)[2]
            operation.effect()
            operation.after = ()  # let the past go

    def _next(self) -> tuple[Operation, float]:
        """The waiting operation that starts first, and when."""
        first: tuple[float, float, int, Operation] | None = None
        for operation in self._waiting:
            ready_s = operation.ready_s
            if ready_s is None:
                continue
            start_s = max(ready_s, self._engine_free_s.get(operation.engine, 0.0))
            candidate = (start_s, ready_s, operation.number, operation)
            if first is None or candidate < first:
                first = candidate
        assert first is not None, "operations that wait for each other"
        return first[3], first[0]

    def _schedule(self, operation: Operation, start_s: float) -> None:
        self._waiting.remove(operation)
        operation.start_s = start_s
        operation.finish_s = start_s + operation.duration_s
        self._engine_free_s[operation.engine] = operation.finish_s
        heapq.heappush(self._running, (operation.finish_s, operation.number, operation))
