"""A file that cannot be written is refused before the work; one that can holds the JSON."""

import json
import os
from pathlib import Path

import pytest

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
