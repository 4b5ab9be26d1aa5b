"""What goes where, and the machinery that moves it. Knows nothing of ONNX or tokens."""
