"""Where the weights of a decoder come from."""
