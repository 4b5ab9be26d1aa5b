"""Decides what goes where, and moves it. Knows nothing of ONNX or tokens."""
