"""Works on a device for the Linear groups of a plan: fetch activations, multiply, copy the results back."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

from offload.devices.base import Device, DeviceArray, DeviceStream, DeviceWeight
from offload.devices.row_scales import fp16_row_scales
from offload.errors import PinningError
from offload.host.cast import cast_activations
from offload.plan.packing import ActivationRow, ColumnMatrix, working_memory
from offload.plan.plan import LinearPlacement, Plan
from offload.spec.arrays import FloatArray, HostArray, aligned
from offload.spec.linear import Activations, ColumnRange, Layout, WeightFormat
from offload.storage.stored_weight import StoredWeight
from offload.weights.registered import host_pieces, pin
from offload.weights.store import WeightStore
from offload.weights.vram_ring import Piece, WeightRing

_Cast = tuple[str, WeightFormat]  # the x of a group, rounded to a format


@dataclass
class GroupWork:
    """The device columns of one Linear group in prefill or decode. `streamed` has the numbers of pieces in the ring."""

    name: str
    row: ActivationRow
    prefill: bool = False
    resident: list[tuple[ColumnMatrix, DeviceWeight]] = field(default_factory=list)
    streamed: list[tuple[ColumnMatrix, int]] = field(default_factory=list)


@dataclass(frozen=True)
class Multiplication:
    """One multiplication of a step."""

    x: DeviceArray
    weights: DeviceWeight | int  # resident, or the number of a piece of its phase
    y: DeviceArray
    layout: Layout
    activations: Activations


@dataclass(frozen=True)
class DeviceStep:
    """The device's work for some groups, bound to arrays for one number of tokens.

    All inputs lie one after another, and so do all outputs: one copy each way.
    """

    prefill: bool
    casts: tuple[tuple[str, HostArray, WeightFormat], ...]  # group, pinned [M, K]
    x_device: DeviceArray
    x_pinned: HostArray
    multiplications: tuple[Multiplication, ...]
    y_device: DeviceArray
    y_pinned: HostArray
    results: tuple[tuple[_Cast, str, ColumnRange, FloatArray], ...]  # its x, Linear, its columns, pinned [M, n]


class DeviceWork:
    """The device's side of a plan: its activation buffers, its compute stream, its weights."""

    def __init__(
        self,
        device: Device,
        plan: Plan,
        placements: Sequence[LinearPlacement],
        host_weights: Mapping[str, StoredWeight],
        stack: ExitStack,
    ) -> None:
        """Allocate, and register those of `host_weights` that prefill streams; `stack` gets what undoes it."""
        self._device = device
        self.compute: DeviceStream = device.stream("compute")
        self._working = working_memory(placements, plan.chunk_tokens)
        self._pinned = device.allocate_pinned(self._working.pinned_bytes)
        self._memory = device.allocate(self._working.device_bytes)
        stack.callback(device.free, self._memory)
        scratch = (1, self._working.scratch_bytes)
        self._scratch = DeviceArray(self._memory, self._working.pinned_bytes, scratch, WeightFormat.INT8)
        self.store = WeightStore(device, placements, plan.ring.slot_bytes)
        stack.callback(self.store.close)
        self.warning = ""  # why prefill streams no more than decode, although it should
        only_prefill = self._only_prefill(device, plan, placements, host_weights, stack)
        self.has_prefill = bool(only_prefill)
        # A level's pieces have to be next to each other: its groups' in the order of their placements.
        order = {placement.linear.group: number for number, placement in enumerate(placements)}
        both = sorted((*self.store.pieces, *only_prefill), key=lambda piece: order[piece.matrix.group])
        # By phase, decode and prefill.
        self._pieces = {False: self.store.pieces, True: tuple(both)}
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
        host_weights: Mapping[str, StoredWeight],
        stack: ExitStack,
    ) -> list[Piece]:
        """Pin the pieces that prefill streams beyond decode; nothing where that is refused."""
        if not plan.prefill_tokens:
            return []
        pieces = host_pieces(placements, host_weights, plan.ring.slot_bytes)
        try:
            pin(device, pieces, stack)
        except PinningError as error:
            self.warning = f"prefill streams no host columns: {error}"
            return []
        return pieces

    def load(self, weights: Mapping[str, StoredWeight], on_bytes: Callable[[int], None] | None) -> None:
        """Load the weights and begin to stream."""
        self.store.load(weights, on_bytes)
        if self._ring is not None:
            self._ring.retarget(self._pieces[False])

    def groups(self, prefill: bool) -> dict[str, GroupWork]:
        """The groups with device columns in prefill or decode, by name."""
        groups: dict[str, GroupWork] = {}
        for matrix, weight in zip(self.store.resident, self.store.weights, strict=True):
            _group_of(matrix, groups, prefill).resident.append((matrix, weight))
        for number, piece in enumerate(self._pieces[prefill]):
            _group_of(piece.matrix, groups, prefill).streamed.append((piece.matrix, number))
        return groups

    def batches(self, groups: Sequence[GroupWork], tokens: int) -> Iterator[list[GroupWork]]:
        """The groups that fit the buffers together: all of a level, but for long steps of several groups."""
        batch: list[GroupWork] = []
        x_bytes = y_bytes = 0
        for group in groups:
            x_bytes += group.row.x_bytes(tokens)
            y_bytes += group.row.y_bytes(tokens)
            if batch and (x_bytes > self._working.x_bytes or y_bytes > self._working.y_bytes):
                yield batch
                batch = []
                x_bytes, y_bytes = group.row.x_bytes(tokens), group.row.y_bytes(tokens)
            batch.append(group)
        yield batch

    def bind(self, groups: Sequence[GroupWork], tokens: int) -> DeviceStep:
        """Give every input and output of some groups its place."""
        casts: list[tuple[str, HostArray, WeightFormat]] = []
        resident: list[Multiplication] = []
        streamed: list[Multiplication] = []
        results: list[tuple[_Cast, str, ColumnRange, FloatArray]] = []
        x_offset, y_offset = 0, self._working.x_bytes
        for group in groups:
            inputs: dict[WeightFormat, DeviceArray] = {}
            matrices: list[tuple[ColumnMatrix, DeviceWeight | int]] = [*group.resident, *group.streamed]
            for matrix, weights in matrices:
                x_format = self._device.input_format(matrix.format)
                if x_format not in inputs:
                    x = DeviceArray(self._memory, x_offset, (tokens, matrix.in_features), x_format)
                    inputs[x_format] = x
                    casts.append((group.name, self._typed(x), x_format))
                    x_offset += aligned(x.nbytes)
                shape = (tokens, matrix.columns)
                y = DeviceArray(self._memory, y_offset, shape, WeightFormat.FP32)
                one = Multiplication(inputs[x_format], weights, y, matrix.layout, matrix.activations)
                (streamed if isinstance(weights, int) else resident).append(one)
                values = self._typed(y)
                for (linear, columns), start in zip(matrix.segments, matrix.positions(), strict=True):
                    part = values[:, start : start + len(columns)]
                    results.append(((group.name, x_format), linear.name, columns, part))
                y_offset += y.nbytes
        x_all = DeviceArray(self._memory, 0, (1, x_offset // 4), WeightFormat.FP32)
        y_shape = (1, (y_offset - self._working.x_bytes) // 4)
        y_all = DeviceArray(self._memory, self._working.x_bytes, y_shape, WeightFormat.FP32)
        return DeviceStep(
            prefill=groups[0].prefill,
            casts=() if self._device.hollow else tuple(casts),
            x_device=x_all,
            x_pinned=self._typed(x_all),
            # Resident columns first: they keep the device busy while streamed ones arrive.
            multiplications=(*resident, *streamed),
            y_device=y_all,
            y_pinned=self._typed(y_all),
            results=tuple(results),
        )

    def queue(self, step: DeviceStep, inputs: Mapping[str, FloatArray]) -> dict[_Cast, FloatArray]:
        """Queue everything of a step, all on the compute stream, so in this order.

        Gives what rows of results, [M, 1], are to be multiplied by, where the device takes their x in fp16.
        """
        compute, scales = self.compute, dict[_Cast, FloatArray]()
        for group, pinned, weight_format in step.casts:
            x = inputs[group]
            if weight_format is WeightFormat.FP16:
                scales[group, weight_format] = fp16_row_scales(x)
                x = x / scales[group, weight_format]
            cast_activations(x, pinned, weight_format)
        compute.fetch(step.x_device, step.x_pinned)
        if self._ring is not None:
            self._ring.retarget(self._pieces[step.prefill])
        for one in step.multiplications:
            if isinstance(one.weights, int):
                assert self._ring is not None
                weights = self._ring.acquire(one.weights)
                compute.multiply(one.x, weights, one.y, one.layout, self._scratch, one.activations)
                self._ring.release()
            else:
                compute.multiply(one.x, one.weights, one.y, one.layout, self._scratch, one.activations)
        compute.copy_to_host(step.y_pinned, step.y_device)
        return scales

    def _typed(self, array: DeviceArray) -> HostArray:
        """The part of the pinned buffer that mirrors a part of the device's."""
        data = self._pinned[array.offset_bytes : array.offset_bytes + array.nbytes]
        return data.view(array.format.storage_dtype).reshape(array.shape)


def _group_of(matrix: ColumnMatrix, groups: dict[str, GroupWork], prefill: bool) -> GroupWork:
    """The group of a matrix, which it becomes a part of."""
    row = ActivationRow(matrix.in_features, frozenset(), 0)
    group = groups.setdefault(matrix.group, GroupWork(matrix.group, row, prefill))
    group.row = group.row.with_matrix(matrix)
    return group
