"""A renewed certificate is shown to whoever connects from then on, and nothing else is."""

import contextlib
import os
import socket
import ssl
import time
from pathlib import Path

import pytest
from servers import SILENCE_S, serving, wait_until, write_certificate

from deploy.serving.certificates import LOOK_S, Certificate
from export.errors import ConfigError


def shown(port: int, *protocols: str) -> bytes:
    """The certificate that a server shows, as DER."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    if protocols:
        context.set_alpn_protocols(protocols)
    with (
        socket.create_connection(("127.0.0.1", port), SILENCE_S) as plain,
        context.wrap_socket(plain) as greeted,
    ):
        found = greeted.getpeercert(binary_form=True)
    assert found is not None
    return found


def der(certificate: Path) -> bytes:
    return ssl.PEM_cert_to_DER_cert(certificate.read_text())


@pytest.fixture
def old(tmp_path: Path) -> tuple[Path, Path]:
    (tmp_path / "old").mkdir()
    return write_certificate(tmp_path / "old")


@pytest.fixture
def new(tmp_path: Path) -> tuple[Path, Path]:
    (tmp_path / "new").mkdir()
    return write_certificate(tmp_path / "new")


def replace(target: Path, source: Path) -> None:
    """As a renewal does, at once."""
    copy = target.with_suffix(".copy")
    copy.write_bytes(source.read_bytes())
    os.replace(copy, target)


@pytest.mark.thorough
def test_a_renewed_certificate_is_shown_over_http_and_grpc(
    pristine: Path, old: tuple[Path, Path], new: tuple[Path, Path]
) -> None:
    first, second = der(old[0]), der(new[0])
    flags = ("--tls-cert", old[0], "--tls-key", old[1])
    trusting = ssl.create_default_context(cafile=str(old[0]))
    with (
        serving(pristine, *flags) as server,
        socket.create_connection(("127.0.0.1", server.port), SILENCE_S) as plain,
        trusting.wrap_socket(plain, server_hostname="127.0.0.1") as before,
    ):
        assert shown(server.port) == shown(server.grpc_port, "h2") == first
        replace(old[1], new[1])
        time.sleep(2 * LOOK_S)  # the key is there, and the certificate is not
        assert shown(server.port) == shown(server.grpc_port, "h2") == first
        replace(old[0], new[0])
        wait_until(lambda: shown(server.port) == second)
        assert shown(server.grpc_port, "h2") == second
        before.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: a\r\n\r\n")
        assert before.recv(12) == b"HTTP/1.1 200"  # what was open stays
        told = [event["message"] for event in server.events]
        told = [message for message in told if "certificate" in message]
    assert [line.split(":")[0].split(";")[0] for line in told] == [
        "the certificate from before stays",
        "the files of TLS changed",
    ]


def test_what_is_not_a_pair_is_left_alone_until_it_is(
    old: tuple[Path, Path], new: tuple[Path, Path], caplog: pytest.LogCaptureFixture
) -> None:
    certificate = Certificate(str(old[0]), str(old[1]))
    pair, context = certificate.pair, ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    assert not certificate.look([context])
    for spoilt in (b"", b"-----BEGIN", b"-----BEGIN ENCRYPTED PRIVATE KEY-----\n"):
        old[1].write_bytes(spoilt)
        assert not certificate.look([context])
        assert not certificate.look([context])
    old[1].unlink()
    assert not certificate.look([context])
    assert certificate.pair == pair
    told = [record.message for record in caplog.records if record.name == "deploy.serving"]
    assert len(told) == len(set(told)) >= 2
    replace(old[1], new[1])
    assert not certificate.look([context])
    replace(old[0], new[0])
    assert certificate.look([context])
    assert certificate.pair == (new[1].read_bytes(), new[0].read_bytes())
    assert not certificate.look([context])


def handshake(context: ssl.SSLContext) -> bytes:
    """The certificate that a server with `context` shows, as DER."""
    asking = ssl.create_default_context()
    asking.check_hostname, asking.verify_mode = False, ssl.CERT_NONE
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = asking.wrap_bio(back, there)
    server = context.wrap_bio(there, back, server_side=True)
    for side in (client, server, client):
        with contextlib.suppress(ssl.SSLWantReadError):
            side.do_handshake()
    found = client.getpeercert(binary_form=True)
    assert found is not None
    return found


@pytest.mark.parametrize("first", ["ec", "rsa"])
def test_a_new_certificate_of_another_algorithm_takes_the_place_of_the_old(
    tmp_path: Path, first: str
) -> None:
    """OpenSSL keeps one of each, and prefers those of elliptic curves."""
    pairs = {}
    for algorithm in ("ec", "rsa"):
        (tmp_path / algorithm).mkdir()
        pairs[algorithm] = write_certificate(tmp_path / algorithm, algorithm)
    before, after = pairs.pop(first), pairs.popitem()[1]
    certificate = Certificate(*map(str, before))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*before)
    assert handshake(context) == der(before[0])
    for target, source in zip(before, after, strict=True):
        replace(target, source)
    assert certificate.look([context])
    assert handshake(context) == der(after[0])


def test_files_that_change_while_they_are_read_spoil_nothing(
    old: tuple[Path, Path], new: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate = Certificate(*map(str, old))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*old)
    shown_before = handshake(context)
    os.utime(old[0])
    read = Certificate._read

    def meddle(self: Certificate, *given: ssl.SSLContext) -> object:
        found = read(self, *given)
        replace(old[0], new[0])  # and not its key
        return found

    monkeypatch.setattr(Certificate, "_read", meddle)
    assert not certificate.look([context])
    assert handshake(context) == shown_before


def test_links_that_are_swapped_are_followed(
    tmp_path: Path, old: tuple[Path, Path], new: tuple[Path, Path]
) -> None:
    """As Kubernetes updates the files of a secret: a link to their folder is replaced."""
    data, swapped = tmp_path / "..data", tmp_path / "..data_tmp"
    data.symlink_to("old")
    certificate = Certificate(str(data / old[0].name), str(data / old[1].name))
    swapped.symlink_to("new")
    os.replace(swapped, data)
    assert certificate.look([])
    assert certificate.pair.chain == new[0].read_bytes()


def test_files_that_do_not_belong_together_are_refused(
    old: tuple[Path, Path], new: tuple[Path, Path]
) -> None:
    with pytest.raises(ConfigError, match="belong together"):
        Certificate(str(old[0]), str(new[1]))
