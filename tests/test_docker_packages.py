"""What the serving image for CPUs installs, followed through the requirements of what is here.

The slow `test_docker_image` performs the installation itself.
"""

import shutil
import tomllib
from importlib.metadata import distribution
from pathlib import Path

import pytest
from dockerfiles import ROOT, find_lacking
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

EXTRAS = ("openvino", "serve")


def follow(lines: list[str]) -> set[str]:
    """Names of all that is installed with these requirements, theirs included."""
    seen: set[tuple[str, frozenset[str]]] = set()
    waiting = [Requirement(line) for line in lines]
    while waiting:
        requirement = waiting.pop()
        key = (canonicalize_name(requirement.name), frozenset(requirement.extras))
        if key in seen:
            continue
        seen.add(key)
        for line in distribution(requirement.name).requires or ():
            further = Requirement(line)
            extras = requirement.extras or {""}
            if further.marker is None or any(further.marker.evaluate({"extra": e}) for e in extras):
                waiting.append(further)
    return {name for name, _ in seen}


@pytest.fixture(scope="module")
def installed() -> set[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    return follow([*project["dependencies"], *(line for name in EXTRAS for line in extras[name])])


def test_torch_is_absent(installed: set[str]) -> None:
    assert {"onnxruntime", "openvino", "starlette", "uvicorn", "grpcio"} <= installed
    assert {name for name in installed if name.startswith(("torch", "nvidia"))} == set()


def test_every_version_is_pinned(installed: set[str]) -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    assert installed <= {
        canonicalize_name(line.partition("==")[0]) for line in lines if "==" in line
    }


def test_no_library_is_needed_that_a_slim_image_lacks(installed: set[str]) -> None:
    if shutil.which("readelf") is None:
        pytest.skip("needs readelf, of binutils")
    # What OpenVINO would load for an Intel GPU is left alone: the container is given none.
    libraries = [
        Path(str(file.locate()))
        for name in installed
        for file in distribution(name).files or ()
        if ".so" in file.name and "_gpu_" not in file.name
    ]
    assert find_lacking(libraries) == set()
