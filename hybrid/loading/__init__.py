"""Settings to an opened model, its device, its plan and an engine."""
