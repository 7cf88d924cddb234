"""What a test may leave of its process to the tests after it, whichever those are.

A command has its process for itself, and changes it as it likes. In the tests many run in one.
"""

import contextlib
import logging
import resource
import signal
import sys
from collections.abc import Iterator

import psutil

_LOGGERS = ("", "deploy")
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextlib.contextmanager
def process_as_before() -> Iterator[None]:
    """Puts back where logs go, who heeds signals, how many files may be open, and turns of threads.

    A log that went on to the captured stderr of an earlier test would say on that of a later one
    that it is closed, and signals would go to an event loop that is no more.
    """
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    logs = [(log, log.level, log.propagate, list(log.handlers)) for log in loggers]
    heeding = {number: signal.getsignal(number) for number in _SIGNALS}
    files = resource.getrlimit(resource.RLIMIT_NOFILE)
    turn = sys.getswitchinterval()
    try:
        yield
    finally:
        for log, level, propagate, handlers in logs:
            log.setLevel(level)
            log.propagate = propagate
            log.handlers[:] = handlers
        logging.captureWarnings(False)
        for number, handler in heeding.items():
            if signal.getsignal(number) != handler:
                signal.signal(number, handler)
        if resource.getrlimit(resource.RLIMIT_NOFILE) != files:
            resource.setrlimit(resource.RLIMIT_NOFILE, files)
        sys.setswitchinterval(turn)


@contextlib.contextmanager
def no_child_left() -> Iterator[None]:
    """Sees to it that the children of this process that are started within are gone afterwards."""
    before = psutil.Process().children(recursive=True)
    yield
    left = [child for child in psutil.Process().children(recursive=True) if child not in before]
    assert not left, f"left running: {[child.cmdline() for child in left]}"
