"""Which disk is full: the error of a write that fails does not say so."""

import errno
import os
import shutil
import tempfile
from pathlib import Path

FULL = (errno.ENOSPC, errno.EDQUOT)
"""What a disk without room says, in the middle of anything."""


def explain_full(error: OSError, folder: Path, *, otherwise: str) -> tuple[str, str]:
    """What is full, in brackets behind what the system said, and what to do about it.

    Args:
        error: one of `FULL`.
        folder: that was written to, beside the one for temporary files; it exists.
        otherwise: what to do, beside making room, where it is not the latter.
    """
    temporary = Path(tempfile.gettempdir())
    if isinstance(error.filename, str | os.PathLike):
        full = Path(error.filename)
    else:
        full = min((folder, temporary), key=lambda path: shutil.disk_usage(path).free)
    apart = temporary.stat().st_dev != folder.stat().st_dev
    if apart and full.is_relative_to(temporary):
        otherwise = "set TMPDIR to a folder that has some"
    return f"{error.strerror} ({full})", f"Make room, or {otherwise}."
