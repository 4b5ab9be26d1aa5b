"""CUDA C kernels for a few rows of x, their sources, and how many threads they are launched with."""
