"""Exported models as C: source code from ONNX graphs, memory that buffers share, and a host build."""
