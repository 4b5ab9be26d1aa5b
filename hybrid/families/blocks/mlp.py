"""Multi-layer perceptrons."""

from hybrid.families.blocks.linear import linear
from hybrid.families.blocks.writer import MICROSOFT, GraphWriter
from hybrid.families.config.activation import Activation
from hybrid.families.config.decoder_config import DecoderConfig

_QUICK_GELU_ALPHA = {"silu": 1.0, "quick_gelu": 1.702}
_GELU_APPROXIMATION = {"gelu": "none", "gelu_tanh": "tanh"}


def mlp(write: GraphWriter, config: DecoderConfig, prefix: str, source: str) -> str:
    """Write down(activation(gate(x)) * up(x)), or down(activation(up(x))) without a gate, (1, S, H) to (1, S, H)."""
    inner, bias = config.intermediate_size, config.mlp_bias
    if not config.mlp_gate:
        up = linear(write, f"{prefix}.up_proj", source, inner, bias)
        active = _activation(write, config.activation, f"{prefix}.act_fn", up)
        return linear(write, f"{prefix}.down_proj", active, config.hidden_size, bias)
    names = f"{prefix}.gate_proj", f"{prefix}.up_proj"
    if config.packed_projections:
        packed = linear(write, f"{prefix}.gate_up_proj", source, 2 * inner, bias)
        gate, up = write.split(packed, dict.fromkeys(names, inner))
    else:
        gate, up = (linear(write, name, source, inner, bias) for name in names)
    active = _activation(write, config.activation, f"{prefix}.act_fn", gate)
    product = write.node("Mul", (active, up), f"{prefix}.gated", write.shapes[up])
    return linear(write, f"{prefix}.down_proj", product, config.hidden_size, bias)


def _activation(write: GraphWriter, kind: Activation, name: str, source: str) -> str:
    shape = write.shapes[source]
    if kind in _QUICK_GELU_ALPHA:
        # x * sigmoid(alpha * x): with alpha 1 it is SiLU in one pass, a fifth faster than Sigmoid and Mul.
        return write.node("QuickGelu", (source,), name, shape, domain=MICROSOFT, alpha=_QUICK_GELU_ALPHA[kind])
    if kind in _GELU_APPROXIMATION:
        return write.node("Gelu", (source,), name, shape, approximate=_GELU_APPROXIMATION[kind])
    if kind == "relu2":
        positive = write.node("Relu", (source,), f"{name}.relu", shape)
        return write.node("Mul", (positive, positive), name, shape)
    return write.node(kind.capitalize(), (source,), name, shape)  # Relu, Sigmoid, Tanh
