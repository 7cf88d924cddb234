"""Rewrites of the captured graph that keep its function and cost less."""
