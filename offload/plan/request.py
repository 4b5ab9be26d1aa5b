"""The question that a plan answers: a model's Linears, a machine, budgets."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from offload.machine.profile import DeviceProfile
from offload.spec.linear import Layout, LinearSpec, WeightFormat
from offload.spec.step import StepShape

DEFAULT_DEPTH = 1024  # the depth a plan is made for, in tokens
DEPTHS = (0, DEFAULT_DEPTH, 4096)  # a plan also tells its step at these
CHUNK_TOKENS = 256  # the most tokens of one prefill step


@dataclass(frozen=True)
class PlanRequest:
    """Everything a plan depends on.

    `fixed_vram_bytes` is what the device takes before the first weight, by name; `other_ram_bytes` what the model
    takes besides its Linears. `unsupported` names weight formats that the device cannot multiply, with the reason.
    """

    model: str
    linears: Sequence[LinearSpec]
    profile: DeviceProfile
    budget_bytes: int
    fixed_vram_bytes: Mapping[str, int]
    other_ram_bytes: Mapping[str, int]
    step: StepShape
    ram_budget_bytes: int | None = None  # all that `Plan.ram_bytes` may add up to
    ram_is_asked: bool = False
    most_vram_bytes: int = 0  # what the budgets of VRAM and RAM could be raised to; 0: not known, or no more than now
    most_ram_bytes: int = 0
    depth: int = DEFAULT_DEPTH  # tokens in the cache of the step that is made fast
    depths: tuple[int, ...] = DEPTHS  # of the steps that the plan tells
    host_format: WeightFormat | None = None  # what float columns that are not resident are quantised to on load
    pinned_limit_bytes: int | None = None  # the most streamed columns may take
    unsupported: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()  # of what led to the budget and the profile

    def movable(self, linear: LinearSpec) -> bool:
        """Tell whether its columns may be on the device."""
        ours = linear.format.is_float or linear.blocks is not None
        return ours and not linear.host_only_reason and linear.format not in self.unsupported

    def streamable(self, linear: LinearSpec) -> bool:
        """Tell whether they may be streamed too: as the host keeps them."""
        return self.movable(linear) and self.kept_format(linear) not in self.unsupported

    def prefill_streamable(self, linear: LinearSpec) -> bool:
        """Tell whether its host columns lie one by one in our memory: those of a float [K, N] weight do not."""
        by_column = linear.layout is Layout.NK or self.kept_format(linear) is not linear.format
        return by_column and self.streamable(linear)

    def kept_format(self, linear: LinearSpec) -> WeightFormat:
        """Name the format that its streamed and host columns are kept in."""
        return linear.format if self.host_format is None or not linear.is_quantisable else self.host_format
