"""Fixtures that every test may use."""

import copy
import functools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings

from export.gpu import read_gpu

settings.register_profile(
    "any machine",
    deadline=None,  # how long an example takes says more of the machine than of what is tested
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("any machine")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files come first: spread by file, the suite ends with the last file that is begun."""
    items.sort(key=lambda item: item.get_closest_marker("long") is None)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """What needs a GPU is skipped in plain sight where there is none."""
    if item.get_closest_marker("gpu") is not None and read_gpu() is None:
        pytest.skip("no NVIDIA GPU")


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What builds find out is kept for this run of the tests alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DEPLOY_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session", autouse=True)
def _one_registry() -> Iterator[None]:
    """The exporter's operators, read once for each opset and copied for every export.

    torch reads and compiles its library of them anew each time, two thirds of a small export.
    """
    try:
        from torch.onnx._internal.exporter._registration import ONNXRegistry
    except ImportError:  # no public name: another version of torch may have it elsewhere
        yield
        return
    read = functools.cache(ONNXRegistry.from_torchlib)

    def copy_registry(*opset: int, **named: int) -> Any:
        registry = copy.copy(read(*opset, **named))
        registry.functions = {name: list(found) for name, found in registry.functions.items()}
        return registry

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ONNXRegistry, "from_torchlib", staticmethod(copy_registry))
        yield
