"""A model file, checked before anything of it runs, and opened."""
