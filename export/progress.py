"""What long stages report to: a callback that the caller injects.

Library code never prints. A stage calls ``progress(Progress("calibrate", done, total))``; the
command line turns that into a bar with an ETA on a terminal and into plain lines elsewhere.
"""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """One report: `done` of `total` units of `stage`; `total` 0 means that it is not known."""

    stage: str
    done: int = 0
    total: int = 0
    detail: str = ""


ProgressCallback = Callable[[Progress], None]


def ignore_progress(progress: Progress) -> None:
    """The callback of those who do not want to know."""
