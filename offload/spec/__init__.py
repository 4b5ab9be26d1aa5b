"""The nouns of placement: Linears, attentions, weights in blocks, sizes. Pure."""
