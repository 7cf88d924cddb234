"""Keeps what Python itself makes requests wait for short: its lock, and its garbage collector."""

import gc
import sys

_TURN_S = 5e-4
"""Seconds that one thread keeps the interpreter while another wants it; Python's own are ten times
as many, and a core on which an engine could run is idle for as long."""


def shorten_turns() -> None:
    """Let threads that come back from an engine have the interpreter soon."""
    sys.setswitchinterval(_TURN_S)


def settle() -> None:
    """Leave what is here now to itself, to be called when models came or went.

    A full collection looks at everything that was ever imported, 10 ms for a server. What is
    frozen is not looked at; what had become garbage by now is freed before.
    """
    gc.unfreeze()
    gc.collect()
    gc.freeze()
