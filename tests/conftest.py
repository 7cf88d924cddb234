"""Fixtures that every test may use, and the order of the tests."""

import gc
import os
from collections.abc import Generator, Iterator
from pathlib import Path

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


def pytest_sessionstart(session: pytest.Session) -> None:
    """Processes side by side have no terminal; the one that hands out the tests has."""
    terminal = session.config.pluginmanager.get_plugin("terminalreporter")
    if terminal is not None:
        session.config.pluginmanager.register(_FailuresAtOnce(terminal))


class _FailuresAtOnce:
    """Names a test as soon as it fails: of a run that is stopped nothing else would be known."""

    def __init__(self, terminal: pytest.TerminalReporter) -> None:
        self._terminal = terminal

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self._terminal.ensure_newline()
            self._terminal.write_line(f"failed: {report.nodeid} ({report.when})")


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
def _kept_operators() -> Iterator[None]:
    """Captures and fusions too look up torch's operators once, as exports of the product do."""
    from export.onnx.kept_operators import keep_operators

    with keep_operators():
        yield
