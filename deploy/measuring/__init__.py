"""Honest times: interleaved, with intervals, and what each layer took."""
