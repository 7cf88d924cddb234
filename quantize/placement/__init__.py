"""Which tensors get Q/DQ: one rule table per target, and the walk that applies it."""
