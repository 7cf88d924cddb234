"""Requests into runs of an engine: who waits, who shares one, where it runs."""
