"""A bundle is written whole or not at all."""

import contextlib
import errno
import fcntl
import os
import platform
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from deploy.bundle.manifest import MANIFEST
from deploy.full_disk import FULL, explain_full
from export.errors import BundleError

_OVERTAKEN = (errno.ENOENT, errno.ENOTEMPTY, errno.EEXIST)
"""What a rename says where another command moved `target` away, or put something there."""

_TRIES = 100
"""Of putting back what was moved aside, while others fill and empty its place."""


@contextlib.contextmanager
def stage_bundle(target: Path) -> Iterator[Path]:
    """A folder beside `target` to build a bundle in; see `stage_folder`.

    Raises:
        BundleError: something that is no bundle stands at `target`.
    """
    with stage_folder(target, _refuse_other) as stage:
        yield stage


@contextlib.contextmanager
def stage_folder(
    target: Path, refuse_other: Callable[[Path], None], *, beside: Path | None = None
) -> Iterator[Path]:
    """A folder beside `target` to write in; becomes `target` when the block ends well.

    On any error or interrupt the folder is removed and what stood at `target` stays. What a
    build that was killed left beside it is cleaned up by the next one: its unfinished folder is
    removed, and what it had moved aside is put back.

    Args:
        target: the folder to write, or to replace.
        refuse_other: raises where what stands at a path must not be replaced.
        beside: where unfinished folders may lie, beside this path, where `target` is in a folder
            that others read; on the same file system.

    Raises:
        BundleError: the folder cannot be written, the disk is full, or another command replaced
            `target` at the same moment; and what `refuse_other` raises.
    """
    target = target.resolve()  # a link stays, and what it leads to is replaced
    refuse_other(target)
    beside = target if beside is None else beside.resolve()
    try:
        beside.parent.mkdir(parents=True, exist_ok=True)
        target.parent.mkdir(exist_ok=True)
        _clean_up(target, beside)
        prefix = f".{beside.name}.new-{_owner()}-"
        stage = Path(tempfile.mkdtemp(prefix=prefix, dir=beside.parent))
    except OSError as error:
        raise BundleError(
            f"{target} cannot be written: {error.strerror}. Choose another --output."
        ) from error
    try:
        yield stage
        stage.chmod(0o755)
        with _one_at_a_time(target.parent):
            refuse_other(target)
            _replace(stage, target, beside)
    except OSError as error:
        if error.errno not in FULL:
            raise
        what, fix = explain_full(error, stage.parent, otherwise="choose another --output")
        raise BundleError(
            f"{target} was not written: {what}. What was there before is as it was. {fix}"
        ) from error
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def make_plain(target: Path) -> Path:
    """`target` without ``..``, which leads nowhere where a folder before it is not there yet."""
    return target.resolve() if ".." in target.parts else target


def _refuse_other(target: Path) -> None:
    """Only a bundle may be replaced: many folders have a manifest.json that is not ours."""
    if not target.exists():
        return
    manifest = target / MANIFEST
    if not manifest.is_file() or b'"manifest_sha256"' not in manifest.read_bytes():
        raise BundleError(
            f"{target} exists and is no bundle; it is left alone. Choose another --output."
        )


def _replace(stage: Path, target: Path, beside: Path) -> None:
    """Put `stage` where `target` is; a crash in between leaves the old folder beside `beside`."""
    unique = stage.name.rpartition("-")[2]
    old = beside.with_name(f".{beside.name}.old-{_owner()}-{unique}")
    try:
        if target.exists():
            target.rename(old)
        stage.rename(target)
    except BaseException as error:  # Ctrl-C too
        _put_back(old, target)
        if isinstance(error, OSError) and error.errno in _OVERTAKEN and stage.exists():
            raise BundleError(
                f"{target} was replaced by another command at the same moment. What that one wrote "
                "stands, whole, and this one wrote nothing. Run it again to replace it."
            ) from error
        raise
    shutil.rmtree(old, ignore_errors=True)


def _put_back(old: Path, target: Path) -> None:
    """What was moved aside, where nobody else has put something in its place."""
    for left in reversed(range(_TRIES)):
        if not old.exists():
            return
        try:
            old.rename(target)
        except OSError as error:
            if target.exists():
                shutil.rmtree(old, ignore_errors=True)
                return
            if error.errno not in _OVERTAKEN or not left:
                raise
            # whoever had filled it moved that away again


@contextlib.contextmanager
def _one_at_a_time(folder: Path) -> Iterator[None]:
    """Hold off others of this machine that replace something in `folder`.

    Network file systems may lock no folder; there `_replace` finds out that it was overtaken.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _clean_up(target: Path, beside: Path) -> None:
    """Undo what builds of this machine left of `target` when they were killed."""
    name = re.escape(beside.name)
    pattern = re.compile(rf"\.{name}\.(new|old)-{re.escape(platform.node())}-(\d+)-\w*")
    for path in beside.parent.iterdir():
        match = pattern.fullmatch(path.name)
        if match is None or path.is_symlink() or _is_alive(int(match[2])):
            continue
        if match[1] == "old" and not target.exists():
            with contextlib.suppress(OSError):  # another command cleans up as well
                path.rename(target)
        else:
            shutil.rmtree(path, ignore_errors=True)


def _owner() -> str:
    """Machine and process: folders may be shared between machines."""
    return f"{platform.node()}-{os.getpid()}"


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
