"""Bytes of files to tensors and graphs: safetensors and ONNX."""
