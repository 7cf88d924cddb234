"""Products with constant matrices: int8 without calibration, and packed weights."""
