"""A file that cannot be written is refused before the work; one that can holds the JSON."""

import json
import os
from pathlib import Path

import pytest
from short_files import files_of_at_most

from deploy.report.json_file import check_output, write_json
from export.errors import ConfigError


def test_what_was_written_reads_back(tmp_path: Path) -> None:
    check_output(tmp_path / "größe 1.json")
    write_json({"name": "größe", "value": 0.1}, tmp_path / "größe 1.json")
    assert json.loads((tmp_path / "größe 1.json").read_bytes()) == {"name": "größe", "value": 0.1}


def test_looking_makes_nothing_and_takes_a_file_that_is_there(tmp_path: Path) -> None:
    check_output(None)
    check_output(tmp_path / "new.json")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "old.json").write_text("old")
    check_output(tmp_path / "old.json")
    assert (tmp_path / "old.json").read_text() == "old"
    check_output(Path("/dev/stdout"))


def test_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"is a folder\. Choose a file as --output"):
        check_output(tmp_path)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"there is no folder .*such\. Make it first"):
        check_output(tmp_path / "such" / "it.json")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(ConfigError, match="cannot be written: Permission denied"):
        check_output(tmp_path / "it.json")


def test_a_full_disk_is_said() -> None:
    with pytest.raises(ConfigError, match="/dev/full cannot be written: No space left on device"):
        write_json({}, Path("/dev/full"))


def test_what_does_not_fit_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_text("the old one")
    with (
        files_of_at_most(10),
        pytest.raises(ConfigError, match="cannot be written: File too large"),
    ):
        write_json({"name": "x" * 100}, path)
    assert path.read_text() == "the old one"
    assert list(tmp_path.iterdir()) == [path]


def test_what_does_not_fit_is_not_begun(tmp_path: Path) -> None:
    with (
        files_of_at_most(10),
        pytest.raises(ConfigError, match="cannot be written: File too large"),
    ):
        write_json({"name": "x" * 100}, tmp_path / "report.json")
    assert list(tmp_path.iterdir()) == []


def test_permissions_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_text("old")
    path.chmod(0o640)
    write_json({"new": 1}, path)
    assert json.loads(path.read_text()) == {"new": 1}
    assert path.stat().st_mode & 0o777 == 0o640


def test_what_a_link_names_is_written_to(tmp_path: Path) -> None:
    """``-o /dev/stdout > FILE``: the shell holds the file open."""
    kept, link = tmp_path / "report.json", tmp_path / "link.json"
    kept.write_text("old")
    link.symlink_to(kept)
    number = kept.stat().st_ino
    write_json({"new": 1}, link)
    assert link.is_symlink()
    assert json.loads(kept.read_text()) == {"new": 1}
    assert kept.stat().st_ino == number


def test_a_new_file_has_the_permissions_of_any_other(tmp_path: Path) -> None:
    (tmp_path / "other").write_text("")
    write_json({}, tmp_path / "it.json")
    assert (tmp_path / "it.json").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_a_pipe_is_written_to(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write_json({"a": 1}, pipe)
    assert json.loads(os.read(reader, 1000)) == {"a": 1}
    os.close(reader)
