"""Engines that do not return or cannot be opened: the server says so, lives, and ends in time."""

import asyncio
import json
import signal
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from servers import Server, rows

import deploy.serving.models.model
from deploy.bundle.folder import read_bundle
from deploy.engines.onnxruntime import OnnxRuntimeEngine
from deploy.serving.control import Controller
from deploy.serving.metrics import ServerStatistics
from deploy.serving.models.model import ServedModel
from deploy.serving.models.repository import ModelRepository
from deploy.serving.options import ServeOptions
from deploy.serving.protocol import InferRequest

OPTIONS = ServeOptions(threads=1, max_batch=1, timeout=0.5, stop_timeout=0.1)
REQUEST = InferRequest("", {"x": np.ones((1, 4), np.float32)}, 1, ())


@pytest.fixture
def shut(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Engines wait for this before they answer requests; those of the start they answer."""
    opened, run = threading.Event(), OnnxRuntimeEngine._run

    def wait(self: Any, feeds: Any) -> Any:
        if threading.current_thread().name.startswith("engine-"):
            assert opened.wait(20)
        return run(self, feeds)

    monkeypatch.setattr(OnnxRuntimeEngine, "_run", wait)
    yield opened
    opened.set()


def make_model(path: Path) -> ServedModel:
    return ServedModel("tiny", "1", read_bundle(path), OPTIONS)


async def wait_until(holds: Any) -> None:
    async with asyncio.timeout(10):
        while not holds():
            await asyncio.sleep(0.01)


def test_a_model_is_not_ready_while_its_engine_does_not_return(
    pristine: Path, shut: threading.Event
) -> None:
    async def scenario() -> None:
        model = make_model(pristine)
        assert await model.load()
        answered = model.submit(REQUEST)
        assert model.ready  # nobody's time is up yet
        await wait_until(lambda: not model.ready)
        assert model.obstacle == "an engine does not return"
        await wait_until(answered.done)  # its time is up just then
        assert isinstance(answered.exception(), Exception)
        shut.set()
        await wait_until(lambda: model.ready)
        assert (await model.submit(REQUEST))["logits"].shape == (1, 3)
        assert await model.unload()

    asyncio.run(scenario())


def test_unloading_does_not_wait_for_it_without_end(pristine: Path, shut: threading.Event) -> None:
    async def scenario() -> None:
        model = make_model(pristine)
        assert await model.load()
        answered = model.submit(REQUEST)
        begun = time.monotonic()
        assert not await model.unload()
        assert time.monotonic() - begun < 5
        shut.set()  # which was left as it was, so it may still answer
        await wait_until(answered.done)
        await wait_until(lambda: not model.pending)
        await model.let_go()

    asyncio.run(scenario())


@pytest.mark.thorough
def test_what_is_replaced_and_slow_is_let_go_when_it_returns(
    pristine: Path, shut: threading.Event
) -> None:
    """A server that lives on would keep the engine, its threads and its memory for ever."""

    async def scenario() -> None:
        before = threading.enumerate()
        repository, model = ModelRepository(), make_model(pristine)
        repository.add(model)
        assert await model.load()
        answered = model.submit(REQUEST)
        controller = Controller(repository, OPTIONS, ServerStatistics())
        await controller.answer({"command": "unload", "name": "tiny"})
        assert repository.leaving
        shut.set()
        await wait_until(lambda: not repository.leaving)
        assert answered.done()
        new = [thread for thread in threading.enumerate() if thread not in before]
        assert not [thread for thread in new if thread.name.startswith("engine-")]

    asyncio.run(scenario())


def test_what_is_unloaded_while_it_is_opened_is_closed_then(
    pristine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go, open_really, opened = threading.Event(), deploy.serving.models.model.open_verified, []

    def open_late(*arguments: Any) -> Any:
        assert go.wait(20)
        opened.append(open_really(*arguments))
        return opened[-1]

    monkeypatch.setattr(deploy.serving.models.model, "open_verified", open_late)

    async def scenario() -> None:
        model = make_model(pristine)
        loading = asyncio.ensure_future(model.load())
        await asyncio.sleep(0.02)
        assert await model.unload()
        go.set()
        assert not await loading
        assert not model.ready
        assert model.opened is None
        assert opened[0].engines[0]._closed

    asyncio.run(scenario())


def test_whatever_keeps_an_engine_from_opening_is_said(
    pristine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any) -> Any:
        raise MemoryError("unable to allocate 16 GiB")

    monkeypatch.setattr(deploy.serving.models.model, "open_verified", fail)
    model = make_model(pristine)
    assert not asyncio.run(model.load())
    assert model.state == "UNAVAILABLE"
    assert "MemoryError: unable to allocate 16 GiB" in str(model.failure)
    assert "lower --max-batch" in str(model.failure)
    assert "/" not in model.reason


STUCK = """
import os, threading, time
from deploy.engines.onnxruntime import OnnxRuntimeEngine
run = OnnxRuntimeEngine._run
def stick(self, feeds):
    if threading.current_thread().name.startswith({names!r}) and os.path.exists({switch!r}):
        open({stuck!r}, "w").close()
        time.sleep(1000)
    return run(self, feeds)
OnnxRuntimeEngine._run = stick
from deploy.cli import main
main()
"""

OPENING = ("asyncio", "uvloop", "ThreadPoolExecutor")
"""Names of the threads that open engines, of either event loop."""


def start_stuck(bundle: Path, folder: Path, *names: str, flags: Sequence[object] = ()) -> Server:
    """A server whose engines stick in threads of these names while ``switch`` is in `folder`."""
    script, switch, stuck = (folder / name for name in ("stuck.py", "switch", "stuck"))
    script.write_text(STUCK.format(names=names, switch=str(switch), stuck=str(stuck)))
    limits = ("--timeout", "0.2", "--stop-timeout", "1", "--max-batch", "1")
    return Server(bundle, *limits, *flags, script=script)


@pytest.mark.thorough
def test_a_server_whose_engine_does_not_return_ends_in_time(pristine: Path, tmp_path: Path) -> None:
    (tmp_path / "switch").touch()
    server = start_stuck(pristine, tmp_path, "engine-").wait_until_ready()
    assert server.infer("tiny", rows([1, 2, 3, 4]))[0] == 504
    assert server.request("GET", "/v2/health/ready")[0] == 503
    assert server.request("GET", "/v2/health/live")[0] == 200
    assert server.infer("tiny", rows([1, 2, 3, 4]))[0] == 503
    begun = time.monotonic()
    assert server.stop() == 1
    assert time.monotonic() - begun < 8
    assert any("does not return" in event["message"] for event in server.events)


def test_a_signal_while_an_engine_is_opened_ends_the_server(pristine: Path, tmp_path: Path) -> None:
    (tmp_path / "switch").touch()
    server = start_stuck(pristine, tmp_path, *OPENING)
    asyncio.run(wait_until((tmp_path / "stuck").exists))
    assert server.request("GET", "/v2/health/ready")[0] == 503
    begun = time.monotonic()
    server.process.send_signal(signal.SIGTERM)
    assert server.stop() == 0
    assert time.monotonic() - begun < 8


def test_a_signal_while_another_bundle_is_loaded_ends_the_server(
    pristine: Path, tmp_path: Path
) -> None:
    """It would otherwise wait for minutes for the thread that opens the engine."""
    control = tmp_path / "ctl.sock"
    server = start_stuck(pristine, tmp_path, *OPENING, flags=("--control", control))
    server.wait_until_ready()
    (tmp_path / "switch").touch()
    with socket.socket(socket.AF_UNIX) as asker:
        asker.connect(str(control))
        asker.sendall(json.dumps({"command": "load", "path": str(pristine)}).encode() + b"\n")
        asyncio.run(wait_until((tmp_path / "stuck").exists))
        assert server.infer("tiny", rows([1, 2, 3, 4]))[0] == 200
        assert server.stop() == 0
