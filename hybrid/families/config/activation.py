"""Activations of MLPs, by the names that config.json has for them."""

from typing import Literal

from hybrid.families.config.values import ConfigValues

Activation = Literal["silu", "quick_gelu", "gelu", "gelu_tanh", "relu", "relu2", "sigmoid", "tanh"]
# Names of transformers' ACT2FN. The rest of them are refused.
_ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "quick_gelu": "quick_gelu",
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_accurate": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_python_tanh": "gelu_tanh",
    "relu": "relu",
    "relu2": "relu2",
    "sigmoid": "sigmoid",
    "tanh": "tanh",
}


def read_activation(values: ConfigValues, key: str = "hidden_act", missing: str = "silu") -> Activation:
    """Read the activation of the MLP. Raises UnsupportedModelError for one that we do not run."""
    name = values.table.get(key, missing)
    if not isinstance(name, str) or name not in _ACTIVATIONS:
        raise values.unsupported(key, f"must be one of {', '.join(_ACTIVATIONS)}")
    return _ACTIVATIONS[name]
