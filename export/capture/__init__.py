"""From a module to a captured program that computes the same."""
