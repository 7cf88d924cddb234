"""Who connects and says nothing is let go in time, whatever should come first on the connection."""

import socket
import ssl
from pathlib import Path

import pytest
from servers import SILENCE_S, read_to_end, rows, serving, write_certificate

SOON = ("--receive-timeout", "1")


@pytest.mark.thorough
def test_a_handshake_that_never_comes_is_given_up(pristine: Path, tmp_path: Path) -> None:
    certificate, key = write_certificate(tmp_path)
    flags = ("--tls-cert", certificate, "--tls-key", key)
    with serving(pristine, *SOON, *flags) as server:
        for port in (server.port, server.grpc_port):
            with socket.create_connection(("127.0.0.1", port), SILENCE_S) as silent:
                assert read_to_end(silent) == b""
        context = ssl.create_default_context(cafile=str(certificate))
        with (
            socket.create_connection(("127.0.0.1", server.port), SILENCE_S) as plain,
            context.wrap_socket(plain, server_hostname="127.0.0.1") as greeted,
        ):
            greeted.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: a\r\n\r\n")
            assert greeted.recv(12) == b"HTTP/1.1 200"
        assert not server.other


def test_a_connection_to_grpc_without_a_word_is_ended(pristine: Path) -> None:
    with serving(pristine, *SOON) as server:
        with socket.create_connection(("127.0.0.1", server.grpc_port), SILENCE_S) as silent:
            read_to_end(silent)  # the server's settings, and the end
        assert server.infer("tiny", rows([1, 2, 3, 4]))[0] == 200
