"""Benchmarks: models with random weights, peers to compare with, and the runs that compare them."""
