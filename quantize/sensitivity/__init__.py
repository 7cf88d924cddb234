"""What int8 costs, layer by layer: no engines, no clocks."""
