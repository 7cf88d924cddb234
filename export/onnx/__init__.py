"""From a captured program to an ONNX model, and what is read from one."""
