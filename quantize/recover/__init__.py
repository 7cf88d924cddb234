"""Transforms that give back what int8 costs: ONNX and numpy alone, no engines, no clocks."""
