"""The usual decoder: a norm before each attention and each MLP."""

from hybrid.families.blocks.builder import DecoderBuilder


def pre_norm_decoder(builder: DecoderBuilder) -> None:
    """Write a decoder whose modules have the names of a Llama's."""
    residual = builder.embed()
    for layer, name in builder.layers():
        normed = residual.norm(f"{name}.input_layernorm")
        residual.add(builder.attention(layer, f"{name}.self_attn", normed))
        normed = residual.norm(f"{name}.post_attention_layernorm")
        residual.add(builder.mlp(f"{name}.mlp", normed))
    builder.head(residual.norm("model.norm", last=True))
