"""The lowest versions that `pyproject.toml` allows, as constraints for pip.

``python tests/lowest_versions.py`` prints them; `make test-lowest` runs the suite with them.
"""

import tomllib
from collections.abc import Iterator
from pathlib import Path

from packaging.requirements import Requirement

EXTRAS = ("build", "rtx", "serve", "otel")
"""What people install; tools of development are as new as `constraints.txt` has them."""


def read_requirements(pyproject: Path) -> Iterator[Requirement]:
    """What users of these extras need."""
    project = tomllib.loads(pyproject.read_text())["project"]
    optional = project["optional-dependencies"]
    for line in [*project["dependencies"], *(line for name in EXTRAS for line in optional[name])]:
        requirement = Requirement(line)
        if requirement.name != project["name"]:
            yield requirement


def find_lowest(requirement: Requirement) -> str:
    """``numpy==1.26.*`` for ``numpy>=1.26``.

    Raises:
        ValueError: it has no lower bound.
    """
    bounds = [bound.version for bound in requirement.specifier if bound.operator == ">="]
    if len(bounds) != 1:
        raise ValueError(f"{requirement} has no lower bound")
    return f"{requirement.name}=={bounds[0]}.*"


if __name__ == "__main__":
    for found in read_requirements(Path(__file__).parent.parent / "pyproject.toml"):
        print(find_lowest(found))
