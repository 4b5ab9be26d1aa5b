"""A CUDA GPU, through CuPy's low-level calls and kernels of our own."""
