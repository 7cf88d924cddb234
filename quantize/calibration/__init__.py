"""Ranges of tensors, from data: in memory that does not grow with the data."""
