"""Compute kernels: numba on the host, CUDA C on the GPU."""
