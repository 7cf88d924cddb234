"""The models of a server: opened, proven, guarded, swapped."""
