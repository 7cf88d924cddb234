"""The certificate of TLS and its key, read again when their files change.

Certificates live for weeks, and servers for longer. Whoever renews one writes new files in place of
the old; connections from then on get the new certificate, and those that are open stay as they are.
Of two files one is written first, and a file is not written at once, so what does not belong
together is left alone until it does.
"""

import asyncio
import logging
import ssl
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from export.errors import ConfigError

LOOK_S = 2.0
"""Seconds between two looks at the files."""

_LOG = logging.getLogger("deploy.serving")


class KeyPair(NamedTuple):
    """Bytes of two PEM files that belong together: the key, and the chain of certificates."""

    key: bytes
    chain: bytes


class Certificate:
    """What the server shows of itself, from two PEM files.

    Args:
        chain: path of the certificates.
        key: path of the key of the first; it has no pass phrase.

    Raises:
        ConfigError: they cannot be read, or do not belong together.
    """

    def __init__(self, chain: str, key: str) -> None:
        self._chain, self._key = Path(chain), Path(key)
        self._seen = self._stamp()
        self._told = ""
        self.pair, _ = self._read()

    async def watch(self, contexts: Sequence[ssl.SSLContext]) -> None:
        """Look at the files again and again, until it is cancelled.

        Args:
            contexts: of listening servers; they are given what is new.
        """
        while True:
            await asyncio.sleep(LOOK_S)
            await asyncio.to_thread(self.look, contexts)  # a file system may take its time

    def look(self, contexts: Sequence[ssl.SSLContext]) -> bool:
        """Whether the files changed since they were last used, and are used from now on."""
        stamp = self._stamp()
        if stamp == self._seen:
            return False
        try:
            pair, fresh = self._read()
        except ConfigError as error:
            if self._told != str(error):  # it may be so for a while
                _LOG.warning("the certificate from before stays: %s", error)
                self._told = str(error)
            return False
        if self._stamp() != stamp:  # another one came meanwhile, and is looked at next
            return False
        for context in contexts:  # to load it there would keep the old one, if of another algorithm
            context.sni_callback = partial(_show, fresh)
        self.pair, self._seen, self._told = pair, stamp, ""
        _LOG.info("the files of TLS changed; connections get the new certificate from now on")
        return True

    def credentials(self) -> Any:
        """What gRPC is to show, which asks again with every connection."""
        import grpc

        given = [self.pair]

        def fetch() -> Any:
            """None: what was given last."""
            if self.pair == given[0]:
                return None
            given[0] = self.pair
            return grpc.ssl_server_certificate_configuration([tuple(given[0])])

        first = grpc.ssl_server_certificate_configuration([tuple(given[0])])
        return grpc.dynamic_ssl_server_credentials(first, fetch)

    def _read(self) -> tuple[KeyPair, ssl.SSLContext]:
        """The files as they are now, and a context that shows them."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            pair = KeyPair(self._key.read_bytes(), self._chain.read_bytes())
            if b"ENCRYPTED" in pair.key:  # OpenSSL would ask the terminal
                raise ConfigError(
                    f"--tls-key {self._key} has a pass phrase, and nobody is there to give it. "
                    "Write the key without: openssl pkey -in KEY -out NEW."
                )
            context.load_cert_chain(self._chain, self._key, password="")
        except (OSError, ssl.SSLError) as error:
            reason = error.strerror or str(error)
            raise ConfigError(
                f"--tls-cert {self._chain}, --tls-key {self._key} cannot be used: {reason}. "
                "Both must be PEM files that belong together; the key has no password."
            ) from error
        return pair, context

    def _stamp(self) -> tuple[tuple[int, ...] | None, ...]:
        """By what a file of another time is told: links are followed, as Kubernetes swaps them."""
        stamps: list[tuple[int, ...] | None] = []
        for path in (self._chain, self._key):
            try:
                found = path.stat()
            except OSError:  # between two versions
                stamps.append(None)
            else:
                stamps.append((found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns))
        return tuple(stamps)


def _show(fresh: ssl.SSLContext, connection: ssl.SSLObject, name: str | None, _: object) -> None:
    """Show the certificate of `fresh`; called early in each handshake, whether it names a host."""
    connection.context = fresh
