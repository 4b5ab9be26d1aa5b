"""Linears and attention on the CPU."""
