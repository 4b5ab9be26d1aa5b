"""The emulated CuPy with a driver's habits: it rounds up what it is asked for, and takes some for itself."""

from collections.abc import Callable

from offload.devices.cuda.vram_meter import GRANULE_BYTES
from tests.device.emulated_cupy import CUDARuntimeError, EmulatedCupy


class EmulatedDriver(EmulatedCupy):
    """`hide` says what it takes; `own_bytes` is all that this process takes, and `peak_bytes` the most of it."""

    def __init__(self, context_bytes: int = 5 << 20) -> None:
        super().__init__()
        self._hidden: Callable[[str, int], int] = lambda name, number: 0
        self.context_bytes = context_bytes
        self.hidden_bytes = 0
        self.peak_bytes = 0
        self.counts: dict[str, int] = {}

    def hide(self, hidden: Callable[[str, int], int]) -> None:
        """From here on, keep what `hidden` gives for each call and its number among those of its name."""
        self._hidden = hidden
        self.counts.clear()

    @property
    def own_bytes(self) -> int:
        """Nothing before the first call, which makes the context."""
        rounded = sum(-(-len(block) // GRANULE_BYTES) * GRANULE_BYTES for block in self.blocks.values())
        return self.context_bytes + self.hidden_bytes + rounded if self.entered else 0

    def enter(self, name: str) -> None:
        super().enter(name)
        self._count(name)

    def enter_cublas(self, name: str) -> None:
        super().enter_cublas(name)
        self._count(name)

    def memGetInfo(self) -> tuple[int, int]:
        self.enter("memGetInfo")
        return self.memory_bytes - self.own_bytes, self.memory_bytes

    def malloc(self, nbytes: int) -> int:
        if nbytes > self.memory_bytes - self.own_bytes:
            raise CUDARuntimeError(2)
        address = super().malloc(nbytes)
        self.peak_bytes = max(self.peak_bytes, self.own_bytes)
        return address

    def _count(self, name: str) -> None:
        number = self.counts[name] = self.counts.get(name, 0) + 1
        self.hidden_bytes += self._hidden(name, number)
        self.peak_bytes = max(self.peak_bytes, self.own_bytes)
