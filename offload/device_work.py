"""What a device does for the Linear groups of a plan: one copy in, the GEMMs, one copy out."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

from offload.devices.base import Device, DeviceArray, DeviceStream, HostArray, aligned
from offload.errors import PinningError
from offload.host_pieces import host_pieces, pin
from offload.kernels.host import FloatArray, cast_activations
from offload.packing import ActivationRow, ColumnMatrix, activation_capacity
from offload.plan import LinearPlacement, Plan
from offload.specs import ColumnRange, Layout, WeightFormat
from offload.stream import Piece, WeightRing
from offload.weight_store import WeightStore


@dataclass
class GroupWork:
    """The device columns of one Linear group in prefill or decode. `streamed` has the numbers of pieces in the ring."""

    name: str
    prefill: bool = False
    resident: list[tuple[ColumnMatrix, DeviceArray]] = field(default_factory=list)
    streamed: list[tuple[ColumnMatrix, int]] = field(default_factory=list)
    row: ActivationRow = field(default_factory=lambda: ActivationRow({}, 0))


@dataclass(frozen=True)
class Gemm:
    """One multiplication of a step."""

    x: DeviceArray
    weights: DeviceArray | int  # resident, or the number of a piece of its phase
    y: DeviceArray
    layout: Layout


@dataclass(frozen=True)
class DeviceStep:
    """What a device does for some groups, bound to arrays for one number of tokens.

    All inputs lie one after another, and so do all outputs: one copy each way.
    """

    prefill: bool
    casts: tuple[tuple[str, HostArray, WeightFormat], ...]  # group, pinned [M, K]
    x_device: DeviceArray
    x_pinned: HostArray
    gemms: tuple[Gemm, ...]
    y_device: DeviceArray
    y_pinned: HostArray
    results: tuple[tuple[str, ColumnRange, FloatArray], ...]  # Linear, its columns, pinned [M, n]


class DeviceWork:
    """The device's side of a plan: its activation buffers, its compute stream, its weights."""

    def __init__(
        self,
        device: Device,
        plan: Plan,
        placements: Sequence[LinearPlacement],
        host_weights: Mapping[str, HostArray],
        stack: ExitStack,
    ) -> None:
        """Allocate, and register those of `host_weights` that prefill streams; `stack` gets what undoes it."""
        self._hollow = device.hollow
        self.compute: DeviceStream = device.stream("compute")
        self._x_bytes, self._y_bytes = activation_capacity(placements, plan.chunk_tokens)
        self._pinned = device.allocate_pinned(self._x_bytes + self._y_bytes)
        self._memory = device.allocate(self._x_bytes + self._y_bytes)
        stack.callback(device.free, self._memory)
        self.store = WeightStore(device, placements, plan.ring.slot_bytes)
        stack.callback(self.store.close)
        streamed = list(zip(self.store.streamed, self.store.pieces, strict=True))
        self.warning = ""  # why prefill streams no more than decode, although it should
        only_prefill = self._only_prefill(device, plan, placements, host_weights, stack)
        self.has_prefill = bool(only_prefill)
        # A level's pieces have to be next to each other: its groups' in the order of their placements.
        order = {placement.linear.group: number for number, placement in enumerate(placements)}
        both = sorted((*streamed, *only_prefill), key=lambda entry: order[entry[0].group])
        # By phase, decode and prefill.
        self._streamed = {False: streamed, True: both}
        self._pieces = {prefill: tuple(piece for _, piece in those) for prefill, those in self._streamed.items()}
        self._ring: WeightRing | None = None
        if self._pieces[True]:
            self._ring = WeightRing(device, self.compute, plan.ring.slots, plan.ring.slot_bytes)
            stack.callback(self._ring.close)
        self.store.reserve()
        stack.callback(self.compute.synchronize)  # called first: nothing is freed while in use

    def _only_prefill(
        self,
        device: Device,
        plan: Plan,
        placements: Sequence[LinearPlacement],
        host_weights: Mapping[str, HostArray],
        stack: ExitStack,
    ) -> list[tuple[ColumnMatrix, Piece]]:
        """What prefill streams beyond decode, registered with the device; nothing where that is refused."""
        if not plan.prefill_tokens:
            return []
        pieces = host_pieces(placements, host_weights, plan.ring.slot_bytes)
        try:
            pin(device, pieces, stack)
        except PinningError as error:
            self.warning = f"prefill streams no host columns: {error}"
            return []
        return pieces

    def load(self, weights: Mapping[str, HostArray], on_bytes: Callable[[int], None] | None) -> None:
        """Load the weights and begin to stream."""
        self.store.load(weights, on_bytes)
        if self._ring is not None:
            self._ring.aim(self._pieces[False])

    def groups(self, prefill: bool) -> dict[str, GroupWork]:
        """The groups with device columns in prefill or decode, by name."""
        groups: dict[str, GroupWork] = {}
        for matrix, array in zip(self.store.resident, self.store.arrays, strict=True):
            group = groups.setdefault(matrix.group, GroupWork(matrix.group, prefill))
            group.resident.append((matrix, array))
            group.row = group.row.with_matrix(matrix)
        for piece, (matrix, _) in enumerate(self._streamed[prefill]):
            group = groups.setdefault(matrix.group, GroupWork(matrix.group, prefill))
            group.streamed.append((matrix, piece))
            group.row = group.row.with_matrix(matrix)
        return groups

    def batches(self, groups: Sequence[GroupWork], tokens: int) -> Iterator[list[GroupWork]]:
        """The groups that fit the buffers together: all of a level, but for long steps of several groups."""
        batch: list[GroupWork] = []
        x_bytes = y_bytes = 0
        for group in groups:
            x_bytes += group.row.x_bytes(tokens)
            y_bytes += group.row.y_bytes(tokens)
            if batch and (x_bytes > self._x_bytes or y_bytes > self._y_bytes):
                yield batch
                batch = []
                x_bytes, y_bytes = group.row.x_bytes(tokens), group.row.y_bytes(tokens)
            batch.append(group)
        yield batch

    def bind(self, groups: Sequence[GroupWork], tokens: int) -> DeviceStep:
        """Give every input and output of some groups its place."""
        casts: list[tuple[str, HostArray, WeightFormat]] = []
        resident: list[Gemm] = []
        streamed: list[Gemm] = []
        results: list[tuple[str, ColumnRange, FloatArray]] = []
        x_offset, y_offset = 0, self._x_bytes
        for group in groups:
            inputs: dict[WeightFormat, DeviceArray] = {}
            for weight_format, features in group.row.in_features.items():
                x = DeviceArray(self._memory, x_offset, (tokens, features), weight_format)
                inputs[weight_format] = x
                casts.append((group.name, self._typed(x), weight_format))
                x_offset += aligned(x.nbytes)
            matrices: list[tuple[ColumnMatrix, DeviceArray | int]] = [*group.resident, *group.streamed]
            for matrix, weights in matrices:
                shape = (tokens, matrix.columns)
                y = DeviceArray(self._memory, y_offset, shape, WeightFormat.FP32)
                gemm = Gemm(inputs[matrix.format], weights, y, matrix.layout)
                (streamed if isinstance(weights, int) else resident).append(gemm)
                values = self._typed(y)
                for (linear, columns), start in zip(matrix.segments, matrix.positions(), strict=True):
                    results.append((linear.name, columns, values[:, start : start + len(columns)]))
                y_offset += y.nbytes
        x_all = DeviceArray(self._memory, 0, (1, x_offset // 4), WeightFormat.FP32)
        y_shape = (1, (y_offset - self._x_bytes) // 4)
        y_all = DeviceArray(self._memory, self._x_bytes, y_shape, WeightFormat.FP32)
        return DeviceStep(
            prefill=groups[0].prefill,
            casts=() if self._hollow else tuple(casts),
            x_device=x_all,
            x_pinned=self._typed(x_all),
            # Resident columns first: they keep the device busy while streamed ones arrive.
            gemms=(*resident, *streamed),
            y_device=y_all,
            y_pinned=self._typed(y_all),
            results=tuple(results),
        )

    def queue(self, step: DeviceStep, inputs: Mapping[str, FloatArray]) -> None:
        """Queue everything of a step, all on the compute stream, so in this order."""
        compute = self.compute
        for group, pinned, weight_format in step.casts:
            cast_activations(inputs[group], pinned, weight_format)
        # First of all: it shares the copy engine with weight pieces, and every release below queues one more.
        compute.copy_to_device(step.x_device, step.x_pinned)
        if self._ring is not None:
            self._ring.aim(self._pieces[step.prefill])
        for gemm in step.gemms:
            if isinstance(gemm.weights, int):
                assert self._ring is not None
                compute.gemm(gemm.x, self._ring.acquire(gemm.weights), gemm.y, gemm.layout)
                self._ring.release()
            else:
                compute.gemm(gemm.x, gemm.weights, gemm.y, gemm.layout)
        compute.copy_to_host(step.y_pinned, step.y_device)

    def _typed(self, array: DeviceArray) -> HostArray:
        """The part of the pinned buffer that mirrors a part of the device's."""
        data = self._pinned[array.offset_bytes : array.offset_bytes + array.nbytes]
        return data.view(array.format.storage_dtype).reshape(array.shape)
