"""What a placed model takes of VRAM and RAM, by name. Pure arithmetic."""

from collections.abc import Mapping

from offload.plan.packing import packed_stream_bytes, resident_bytes, staging_bytes, working_memory
from offload.plan.placed_model import PlacedModel
from offload.plan.plan import StreamRing
from offload.plan.ram_tiers import ram_bytes
from offload.plan.request import CHUNK_TOKENS, PlanRequest


def vram_bytes(request: PlanRequest, model: PlacedModel, ring: StreamRing) -> dict[str, int]:
    """Count the bytes on the device; nothing when no column is on it."""
    vram = dict.fromkeys((*request.fixed_vram_bytes, "staging", "activations", "weights"), 0)
    if model.on_device:
        vram |= request.fixed_vram_bytes
        vram |= {
            "staging": ring.nbytes,
            "activations": working_memory(model.distinct, CHUNK_TOKENS).device_bytes,
            "weights": model.total(resident_bytes),
        }
    return vram


def fixed_ram_bytes(other_bytes: Mapping[str, int], model: PlacedModel) -> dict[str, int]:
    """Count the bytes of RAM besides host columns, `other_bytes` of the model included.

    Activations and staging are pinned, as on devices.
    """
    return {
        "pinned weights": model.total(packed_stream_bytes),
        **other_bytes,
        "activations": other_bytes.get("activations", 0) + working_memory(model.distinct, CHUNK_TOKENS).pinned_bytes,
        "staging": staging_bytes(model.distinct),
    }


def fits(request: PlanRequest, model: PlacedModel, ring: StreamRing) -> bool:
    """Tell whether a placed model is within both budgets."""
    if sum(vram_bytes(request, model, ring).values()) > request.budget_bytes:
        return False
    if request.ram_budget_bytes is None:
        return True
    taken = ram_bytes(model.rows, fixed_ram_bytes(request.other_ram_bytes, model))
    return sum(taken.values()) <= request.ram_budget_bytes
