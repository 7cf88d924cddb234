"""Fixtures that every test may use, and the order of the tests."""

import copy
import functools
import gc
import os
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from export.gpu import read_gpu

settings.register_profile(
    "any machine",
    deadline=None,  # how long an example takes says more of the machine than of what is tested
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("any machine")


def pytest_configure(config: pytest.Config) -> None:
    """Processes side by side begin to read the tests in different places.

    To compile a test takes longer than to import it. What one process has compiled the others find.
    """
    worker = os.environ.get("PYTEST_XDIST_WORKER")
    if worker and config.args == config.getini("testpaths"):
        files = sorted(map(str, Path(__file__).parent.rglob("test_*.py")))
        count = int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
        start = len(files) * int(worker.removeprefix("gw")) // count
        config.args = [*files[start:], *files[:start]]


@pytest.hookimpl(wrapper=True)
def pytest_collection(session: pytest.Session) -> Generator[None, object, object]:
    """What is imported and collected lasts: the garbage collector need not look through it."""
    if session.config.getoption("dist", "no") == "no":  # else tests are only handed out here
        import torch  # noqa: F401  first, as libraries of engines may bring another OpenMP
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        gc.freeze()
        gc.set_threshold(20_000, 10, 10)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> Iterator[None]:
    """All processes shuffle the same list, of which long files then come first.

    Spread by file, the suite ends with the last file that is begun.
    """
    items.sort(key=lambda item: item.path)
    yield
    items.sort(key=lambda item: item.get_closest_marker("long") is None)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """What needs a GPU is skipped in plain sight where there is none."""
    if item.get_closest_marker("gpu") is not None and read_gpu() is None:
        pytest.skip("no NVIDIA GPU")


@pytest.fixture(autouse=True)
def _seed() -> None:
    import torch

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


@pytest.fixture(scope="session", autouse=True)
def _known_operators() -> Iterator[None]:
    """Operators that torch composes of others, looked up again only where there are more of them.

    Every export looks all of them up by name, several times for each library of operators.
    """
    from torch import _C

    try:
        from torch._export import utils

        look_up = utils._materialize_cpp_cia_ops
    except (ImportError, AttributeError):  # no public name either
        yield
        return
    known: list[str] = []

    def look_up_new() -> None:
        found = _C._dispatch_get_registrations_for_dispatch_key("CompositeImplicitAutograd")
        if found != known:
            look_up()
            known[:] = found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(utils, "_materialize_cpp_cia_ops", look_up_new)
        yield
