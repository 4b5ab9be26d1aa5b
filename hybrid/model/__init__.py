"""From a model folder to a `Graph`."""
