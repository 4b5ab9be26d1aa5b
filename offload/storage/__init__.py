"""Weights where they lie: files, arrays in files or memory, and how a weight is made of them."""
