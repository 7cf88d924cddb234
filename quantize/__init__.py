"""ONNX → ONNX in fewer bits."""
