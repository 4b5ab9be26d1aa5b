"""Compute kernels of the CPU, compiled by numba."""
