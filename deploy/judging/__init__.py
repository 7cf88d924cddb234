"""Every candidate held against the eager model: what it may lose, and what it lost."""
