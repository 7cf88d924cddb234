"""Tests of what an older version of a library cannot do, though the product runs with it."""

from importlib.metadata import version

import pytest
from packaging.version import Version


def since(package: str, lowest: str, lacks: str) -> pytest.MarkDecorator:
    """Skips a test before this version of `package`, and says what `lacks` there."""
    found = version(package)
    older = Version(found).release < Version(lowest).release
    return pytest.mark.skipif(older, reason=f"{package} {found} {lacks}")
