"""A new version takes over without a failed request, or not at all; strangers have no say in it."""

import asyncio
import json
import shutil
import socket
import ssl
import stat
import threading
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from servers import Server, rows, serving, spoil_golden, wait_until, write_certificate
from tiny import Cli, answer

from deploy.serving.control import Controller, send_command
from deploy.serving.metrics import ServerStatistics
from deploy.serving.models.repository import ModelRepository
from deploy.serving.options import ServeOptions
from export.errors import ConfigError, EngineError


@pytest.fixture
def control(tmp_path: Path) -> Path:
    return tmp_path / "ctl.sock"


class Asker(threading.Thread):
    """Asks until it is told to stop, and keeps every status and version."""

    def __init__(self, server: Server, seed: int) -> None:
        super().__init__()
        self.server, self.random = server, np.random.default_rng(seed)
        self.ended = threading.Event()
        self.statuses: set[int] = set()
        self.versions: list[str] = []

    def run(self) -> None:
        while not self.ended.is_set():
            x = self.random.standard_normal((1, 4)).astype(np.float32)
            status, got = self.server.infer("tiny", rows(x[0].tolist()))
            self.statuses.add(status)
            if status == 200:
                np.testing.assert_allclose(got["outputs"][0]["data"], answer(x)[0], 1e-4, 1e-4)
                self.versions.append(got["model_version"])


def test_a_new_version_takes_over_under_load(pristine: Path, control: Path, cli: Cli) -> None:
    with serving(pristine, "--control", control) as server:
        assert stat.S_IMODE(control.stat().st_mode) == 0o600
        askers = [Asker(server, seed) for seed in range(6)]
        for asker in askers:
            asker.start()
        for expected in ("2", "3", "4"):
            code, out, err = cli("ctl", "--control", control, "load", pristine)
            assert (code, json.loads(out)["version"]) == (0, expected), err
        wait_until(lambda: all("4" in asker.versions[-1:] for asker in askers))
        for asker in askers:
            asker.ended.set()
        for asker in askers:
            asker.join()
        assert {status for asker in askers for status in asker.statuses} == {200}
        for asker in askers:
            assert asker.versions == sorted(asker.versions)
            assert asker.versions[-1] == "4"
        assert server.ask("/v2/models/tiny")["versions"] == ["4"]
        assert server.ask("/v2/health/ready") == {"ready": True}
    assert not control.exists()


@pytest.mark.thorough
def test_a_bundle_that_fails_changes_nothing(
    pristine: Path, bundle_path: Path, control: Path, cli: Cli
) -> None:
    spoil_golden(bundle_path, 2.0)
    with serving(pristine, "--control", control) as server:
        code, _, err = cli("ctl", "--control", control, "load", bundle_path)
        assert code == 1
        assert "does not repeat the answers recorded" in err
        code, _, err = cli("ctl", "--control", control, "load", bundle_path.parent / "none")
        assert (code, "is no bundle" in err) == (2, True)
        code, _, err = cli("ctl", "--control", control, "load", pristine, "--name", "../x")
        assert (code, "cannot be the name" in err) == (2, True)
        assert server.ask("/v2/models/tiny")["versions"] == ["1"]
        assert server.ask("/v2/health/ready") == {"ready": True}
        assert server.infer("tiny", rows([1, 2, 3, 4]))[0] == 200


@pytest.mark.thorough
def test_versions_side_by_side_and_unloaded(pristine: Path, control: Path, cli: Cli) -> None:
    with serving(pristine, "--control", control) as server:
        flags: tuple[Any, ...] = ("ctl", "--control", control)
        assert cli(*flags, "load", pristine, "--keep")[0] == 0
        assert server.ask("/v2/models/tiny")["versions"] == ["1", "2"]
        assert cli(*flags, "unload", "tiny", "--version", "1")[0] == 0
        assert server.ask("/v2/models/tiny")["versions"] == ["2"]
        assert cli(*flags, "unload", "tiny")[0] == 0
        assert server.infer("tiny", rows([1, 2, 3, 4]))[0] == 404
        assert cli(*flags, "unload", "tiny")[0] == 2
        code, out, _ = cli(*flags, "status")
        assert (code, json.loads(out)["models"]) == (0, [])


@pytest.mark.thorough
def test_a_folder_that_is_a_version_is_loaded_as_that(
    pristine: Path, tmp_path: Path, control: Path, cli: Cli
) -> None:
    """Higher than what there was, it keeps its number; else it gets the next, as others do."""
    for version in ("1", "7", "5"):
        shutil.copytree(pristine, tmp_path / "net" / version)
    flags: tuple[Any, ...] = ("ctl", "--control", control)
    with serving(tmp_path / "net" / "1", "--control", control) as server:
        assert server.ask("/v2/models/net")["versions"] == ["1"]
        for given, expected in (("7", "7"), ("5", "8")):
            code, out, err = cli(*flags, "load", tmp_path / "net" / given)
            done = json.loads(out)
            assert (code, done["name"], done["version"]) == (0, "net", expected), err
        assert cli(*flags, "unload", "net")[0] == 0
        code, out, _ = cli(*flags, "load", tmp_path / "net" / "1")
        assert (code, json.loads(out)["version"]) == (0, "9")


def test_what_goes_wrong_within_is_told_to_who_asked(
    control: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has no memory, say; a silence would look as if the server were gone."""

    def fail(*_: object) -> None:
        raise MemoryError("no room for 9 GiB")

    async def scenario() -> None:
        controller = Controller(ModelRepository(), ServeOptions(), ServerStatistics())
        listening = await controller.start(control)
        with monkeypatch.context() as patch:
            patch.setattr("deploy.serving.control.read_bundle", fail)
            with pytest.raises(EngineError, match="MemoryError: no room for 9 GiB"):
                await asyncio.to_thread(
                    send_command, control, {"command": "load", "path": "net.deploy"}
                )
        reply = await asyncio.to_thread(send_command, control, {"command": "status"})
        assert reply["models"] == []
        listening.close()

    asyncio.run(scenario())


def test_a_server_that_takes_long_is_not_told_to_be_gone(
    control: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deploy.serving.control._WAIT_S", 0.2)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(control))
        listener.listen()
        with pytest.raises(EngineError, match=r"has not answered for 0 s and may still do"):
            send_command(control, {"command": "load"})


@pytest.mark.thorough
def test_who_asks_and_goes_or_never_asks_leaves_no_error_in_the_log(
    pristine: Path, control: Path
) -> None:
    waiting = socket.socket(socket.AF_UNIX)
    with serving(pristine, "--control", control) as server, waiting:
        for _ in range(20):
            with socket.socket(socket.AF_UNIX) as gone:
                gone.connect(str(control))
                gone.sendall(b'{"command": "metrics"}\n')
        waiting.connect(str(control))
        assert send_command(control, {"command": "status"})["ready"]
        assert server.stop() == 0
    assert {event["level"] for event in server.events} == {"info"}


def test_where_no_server_answers(tmp_path: Path, cli: Cli) -> None:
    code, _, err = cli("ctl", "--control", tmp_path / "none.sock", "status")
    assert (code, "Start it with deploy serve --control" in err) == (2, True)


def test_a_socket_that_another_server_has_is_left_to_it(control: Path) -> None:
    """What a killed server left behind is taken over."""

    async def scenario() -> None:
        parts = (ModelRepository(), ServeOptions(), ServerStatistics())
        first = await Controller(*parts).start(control)
        with pytest.raises(ConfigError, match=r"another server has it\. Stop that one"):
            await Controller(*parts).start(control)
        reply = await asyncio.to_thread(send_command, control, {"command": "status"})
        assert reply["models"] == []
        first.close()
        await first.wait_closed()
        control.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX) as killed:
            killed.bind(str(control))
        assert control.is_socket()
        second = await Controller(*parts).start(control)
        second.close()

    asyncio.run(scenario())


def test_a_key_with_a_pass_phrase_is_refused_and_nobody_asked(
    pristine: Path, tmp_path: Path, cli: Cli
) -> None:
    for name in ("cert.pem", "key.pem"):
        (tmp_path / name).write_text("-----BEGIN ENCRYPTED PRIVATE KEY-----\n")
    files = ("--tls-cert", tmp_path / "cert.pem", "--tls-key", tmp_path / "key.pem")
    code, _, err = cli("serve", pristine, "--port", "0", "--grpc-port", "0", *files)
    assert (code, "has a pass phrase" in err) == (2, True)


@pytest.mark.thorough
def test_tls_and_its_files(pristine: Path, tmp_path: Path, cli: Cli) -> None:
    certificate, key = write_certificate(tmp_path)
    flags = ("--tls-cert", certificate, "--tls-key", key)
    with serving(pristine, *flags) as server:
        context = ssl.create_default_context(cafile=str(certificate))
        url = f"https://127.0.0.1:{server.port}/v2/health/ready"
        with urllib.request.urlopen(url, context=context, timeout=10) as answered:
            assert json.loads(answered.read()) == {"ready": True}
    key.write_text("no key")
    code, _, err = cli("serve", pristine, *flags, "--port", 0, "--grpc-port", 0)
    assert (code, "cannot be used" in err) == (2, True)
