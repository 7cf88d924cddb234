"""The two 16-bit floats, and what stays float32 for which reason."""
