"""Multiplies weights: one protocol, a simulated device, a CUDA device."""
