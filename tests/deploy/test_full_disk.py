"""A full disk is named, with what makes room: TMPDIR where temporary files were written."""

import errno
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from deploy.bundle.staging import stage_bundle
from deploy.full_disk import explain_full
from export.errors import BundleError

SHARED_MEMORY = Path("/dev/shm")


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of temporary files, on another disk than `tmp_path`."""
    if not SHARED_MEMORY.is_dir() or SHARED_MEMORY.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("needs two file systems")
    monkeypatch.setattr(tempfile, "tempdir", str(SHARED_MEMORY))
    return SHARED_MEMORY


def full(path: Path | None = None) -> OSError:
    """What a write raises; only calls that open a file name it."""
    text = os.strerror(errno.ENOSPC)
    return OSError(errno.ENOSPC, text) if path is None else OSError(errno.ENOSPC, text, str(path))


def test_temporary_files_on_a_disk_of_their_own_can_go_elsewhere(
    tmp_path: Path, elsewhere: Path
) -> None:
    with (
        pytest.raises(BundleError, match="was not written") as caught,
        stage_bundle(tmp_path / "net.deploy"),
    ):
        raise full(elsewhere / "deploy-1" / "model.onnx")
    assert f"No space left on device ({elsewhere / 'deploy-1' / 'model.onnx'})" in str(caught.value)
    assert "Make room, or set TMPDIR to a folder that has some." in str(caught.value)
    assert "--output" not in str(caught.value)


def test_where_no_file_is_named_the_disk_with_less_room_is(tmp_path: Path, elsewhere: Path) -> None:
    free = {
        path: os.statvfs(path).f_bavail * os.statvfs(path).f_frsize
        for path in (tmp_path, elsewhere)
    }
    what, fix = explain_full(full(), tmp_path, otherwise="choose another --output")
    least = min(free, key=lambda path: free[path])
    assert what == f"No space left on device ({least})"
    assert ("TMPDIR" in fix) == (least == elsewhere)


def test_one_disk_for_both_is_not_left_by_another_tmpdir(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    _, fix = explain_full(full(), tmp_path, otherwise="choose another --output")
    assert fix == "Make room, or choose another --output."


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_command_whose_output_finds_no_room_ends_with_2_in_one_line(unbuffered: str) -> None:
    command = [sys.executable, "-m", "deploy", "--help"]
    with open("/dev/full", "w") as device:
        ended = subprocess.run(
            command,
            stdout=device,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
        )
    assert ended.returncode == 2
    (said,) = ended.stderr.splitlines()
    assert said.startswith("Error: No space left on device (")
    assert "Make room" in said
