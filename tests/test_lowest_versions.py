"""What the lowest versions are; that the suite passes with them is for `make test-lowest`."""

from pathlib import Path

import pytest
from lowest_versions import find_lowest, read_requirements
from packaging.requirements import Requirement

PYPROJECT = Path(__file__).parent.parent / "pyproject.toml"


def test_everything_that_users_install_has_a_lowest_version() -> None:
    lowest = [find_lowest(requirement) for requirement in read_requirements(PYPROJECT)]
    names = {line.partition("==")[0] for line in lowest}
    assert {"numpy", "torch", "openvino", "tensorrt-rtx", "uvicorn", "opentelemetry-sdk"} <= names
    assert len(names) == len(lowest)
    assert "deploykit" not in names


@pytest.mark.parametrize(
    ("line", "lowest"),
    [
        ("numpy>=1.26", "numpy==1.26.*"),
        ("uvloop>=0.21; sys_platform != 'win32'", "uvloop==0.21.*"),
        ("rich<16,>=13.9", "rich==13.9.*"),
    ],
)
def test_the_lower_bound_is_the_lowest_version(line: str, lowest: str) -> None:
    assert find_lowest(Requirement(line)) == lowest


@pytest.mark.parametrize("line", ["numpy", "numpy<3"])
def test_what_has_no_lower_bound_is_refused(line: str) -> None:
    with pytest.raises(ValueError, match=r"numpy.* has no lower bound"):
        find_lowest(Requirement(line))
