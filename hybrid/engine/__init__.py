"""Running a `Program`: islands, the step, the KV cache, the engine."""
