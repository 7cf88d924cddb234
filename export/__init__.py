"""Torch graph → fused graph → ONNX → TensorRT engine. Depends on nothing of ours."""
