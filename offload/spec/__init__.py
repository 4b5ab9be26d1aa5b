"""The nouns of placement: Linears, attentions, block-quantised weights, sizes. Pure."""
