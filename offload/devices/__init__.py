"""Where weights are multiplied: one protocol, a simulated device, a CUDA device."""
