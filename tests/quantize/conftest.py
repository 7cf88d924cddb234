"""Makes the small nets of this folder importable from the folders below."""
