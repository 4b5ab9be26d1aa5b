"""Settings of a run, as plain data."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from offload.machine.budget import AUTO, Budget, parse_budget

DEMO_MODEL = Path(__file__).parents[1] / "demo"


@dataclass(frozen=True)
class RunSettings:
    """The settings of a run: what, where, and with how much.

    `model` is a folder, an .onnx file, or the name of a model on the Hugging Face hub; `variant` picks one of
    several ONNX precisions there.
    `host_dtype` "int8" or "int4" quantises the host columns of float weights on load. `activations` "int8" or
    "float" says what quantised weights multiply; None goes by the model, and for weights quantised on load is int8.
    `cuda` is the text of `--cuda`, None for "decide for me"; `vram_budget` is what it says.
    `ram` is the text of `--ram`: the most RAM this process may take; None for most of what is there.
    `device` is "auto", "cuda", "cuda:N", "cpu" or "simulated". `machine` names a device profile: a file, or one
    of those that come with the package; None picks one that suits the device.
    `allow_unused` runs a model whose class or tensors are not all known, without those.
    `kv_dtype` is "fp16" or "fp32", what keys and values are kept in; None for what the model's graph has.
    """

    model: str | Path = DEMO_MODEL
    variant: str | None = None
    cuda: str | None = None
    device: str = "auto"
    machine: str | None = None
    context_tokens: int | None = None
    threads: int | None = None
    ram: str | None = None
    kv_dtype: str | None = None
    host_dtype: str | None = None
    activations: str | None = None
    allow_unused: bool = False

    @cached_property
    def vram_budget(self) -> Budget:
        """What `--cuda` says. Raises BudgetError."""
        return AUTO if self.cuda is None else parse_budget(self.cuda)

    @cached_property
    def ram_budget(self) -> Budget:
        """What `--ram` says. Raises BudgetError."""
        return AUTO if self.ram is None else parse_budget(self.ram, "--ram")
