"""Load the Linears of a model under a plan: kernels, host columns and device columns."""

from collections.abc import Sequence

from hybrid.graph.find import stored_weight
from hybrid.loading.opened_model import OpenedModel
from hybrid.loading.quantisation import HostQuantisation
from hybrid.machine.cgroups import read_limits
from hybrid.machine.ram import read_ram
from hybrid.progress import Progress
from offload.devices.base import Device
from offload.host.backend import NumbaBackend
from offload.observe.timeline import Timeline
from offload.plan.plan import LinearPlacement, Plan
from offload.plan.ram_tiers import file_bytes
from offload.run.runner import LinearRunner
from offload.weights.host_columns import load_host_columns


class LinearLoader:
    """Loads the Linears that run outside onnxruntime, under one plan after the other.

    `kernels` are the CPU's, made when a plan first has host columns, or at once where something attends.
    """

    def __init__(
        self,
        opened: OpenedModel,
        device: Device | None,
        threads: int,
        progress: Progress,
        timeline: Timeline | None,
    ) -> None:
        self.kernels: NumbaBackend | None = None
        self._opened = opened
        self._device = device
        self._threads = threads
        self._progress = progress
        self._timeline = timeline
        graph = opened.decoder.graph
        self._weights = {linear.spec.name: stored_weight(graph, linear) for linear in opened.outside}

    def load(self, plan: Plan) -> LinearRunner:
        """Load. Raises as `LinearRunner` does, with nothing left allocated."""
        placements = [placement for placement in plan.placements if placement.linear.name in self._weights]
        quantised = HostQuantisation(placements)
        kernels = self._compiled_for(placements, quantised)
        format_made = f" (quantising to {self._opened.host_format})" if quantised.makes_any else ""
        all_bytes = sum(placement.linear.weight_bytes for placement in placements)
        self._progress.on_stage(f"Loading weights{format_made}", all_bytes - file_bytes(placements))
        # Where nobody knows how much RAM there is, its use is left to the system.
        ram_is_known = read_ram(read_limits()) is not None
        return LinearRunner(
            levels=[[linear.name for linear in level.linears] for level in self._opened.program.levels],
            plan=plan,
            weights=self._weights,
            device=self._device,
            host=kernels,
            timeline=self._timeline,
            on_bytes=self._progress.on_bytes,
            host_weights=load_host_columns(placements, self._weights, ram_is_known, self._progress.on_bytes),
        )

    def _compiled_for(self, placements: Sequence[LinearPlacement], quantised: HostQuantisation) -> NumbaBackend | None:
        """The kernels with all that the host columns need compiled; None where they are not needed."""
        on_host = any(len(placement.host) for placement in placements)
        if not on_host and not self._opened.attentions and not quantised.makes_any:
            return None
        kinds = {(p.linear.format, p.linear.layout) for p in placements if len(p.host) and p.host_format.is_float}
        self._progress.on_stage("Compiling kernels (kept for the next run)", 0)
        if self.kernels is None:
            self.kernels = NumbaBackend(self._threads)
        self.kernels.warm_up(sorted(kinds))
        quantised.warm_up(self.kernels)
        return self.kernels
