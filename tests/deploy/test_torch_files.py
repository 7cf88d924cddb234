"""What torch writes to a file that can take no more ends in an error, and never in an abort."""

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from short_files import files_of_at_most
from torch import nn

from deploy.torch_files import open_for_torch

NET = nn.Sequential(nn.Linear(64, 64), nn.ReLU()).eval()
ROWS = torch.randn(2, 64, generator=torch.Generator().manual_seed(0))


def save_module(file: Any) -> None:
    torch.save(NET, file)


def save_program(file: Any) -> None:
    torch.export.save(torch.export.export(NET, (ROWS,)), file)


def test_what_is_written_is_what_torch_reads(tmp_path: Path) -> None:
    for save, name in ((save_module, "net.pt"), (save_program, "net.pt2")):
        with open_for_torch(tmp_path / name) as file:
            save(file)
    net = torch.load(tmp_path / "net.pt", weights_only=False)
    program = torch.export.load(tmp_path / "net.pt2").module()
    torch.testing.assert_close(net(ROWS), NET(ROWS), rtol=0, atol=0)
    torch.testing.assert_close(program(ROWS), NET(ROWS))


@pytest.mark.parametrize("save", [save_module, save_program])
@pytest.mark.parametrize("size", [0, 1000, 10_000])
def test_a_file_that_takes_no_more_is_named(
    save: Callable[[Any], None], size: int, tmp_path: Path
) -> None:
    path = tmp_path / "net.pt2"
    with (
        pytest.raises(OSError, match="File too large") as caught,
        files_of_at_most(size),
        open_for_torch(path) as file,
    ):
        save(file)
    assert (caught.value.errno, caught.value.filename) == (errno.EFBIG, str(path))


def test_a_full_disk_is_found_in_what_is_written_last_as_well() -> None:
    with (
        pytest.raises(OSError, match="No space left") as caught,
        open_for_torch(Path("/dev/full")) as file,
    ):
        file.write(b"held back until the file is closed")
    assert caught.value.errno == errno.ENOSPC


class Unwilling:
    """What cannot be pickled."""

    def __reduce__(self) -> Any:
        raise ZeroDivisionError


def test_what_fails_in_the_block_comes_first(tmp_path: Path) -> None:
    with (
        pytest.raises(ZeroDivisionError),
        files_of_at_most(0),
        open_for_torch(tmp_path / "net.pt") as file,
    ):
        torch.save(Unwilling(), file)
