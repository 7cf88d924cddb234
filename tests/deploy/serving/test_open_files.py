"""Idle connections do not use up what a process may have open, and so keep others out."""

import contextlib
import resource
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from servers import Server, rows

from deploy.serving.open_files import allow_open_files


@contextlib.contextmanager
def limited(soft: int) -> Iterator[None]:
    """Within the block this process, and what it starts, may have so many files open."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_idle_connections_to_grpc_keep_nobody_from_http(pristine: Path) -> None:
    with limited(256):
        server = Server(pristine).wait_until_ready()
    with contextlib.ExitStack() as stack:
        stack.callback(server.stop)
        for _ in range(400):
            idle = socket.create_connection(("127.0.0.1", server.grpc_port), 10)
            stack.callback(idle.close)
            idle.settimeout(10)
            assert idle.recv(1)  # its settings: it was accepted
        assert server.request("GET", "/v2/health/live")[0] == 200
        assert server.infer("tiny", rows([1, 2, 3, 4]))[0] == 200


@pytest.mark.parametrize("connections", [1, 10**9])
def test_the_limit_of_the_system_is_kept(connections: int) -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    with limited(200):
        allow_open_files(connections)
        soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    most = connections + 1024 if connections > 2**16 else 2**16
    assert soft == (most if hard == resource.RLIM_INFINITY else min(most, hard))


def test_what_is_more_already_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("it was changed")

    monkeypatch.setattr(resource, "getrlimit", lambda _: (2**20, 2**20))
    monkeypatch.setattr(resource, "setrlimit", refuse)
    allow_open_files(1024)
