"""A thin client of the Open Inference Protocol v2: one connection that is kept, one call at a time.

It is what `deploy verify --url` checks with and what `deploy bench --url` learns the model from. It
needs nothing but the standard library. In an application, ``tritonclient`` does more.
"""

import contextlib
import http.client
import json
import re
import ssl
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, urlsplit

from deploy.client.tensors import HEAD_LENGTH, decode_answer, encode_request, read_signature
from deploy.engines.base import Array, Feeds
from export.artifacts import TensorSpec
from export.errors import ConfigError, ServerError

TIMEOUT_S = 60.0
_MOST = 2**31
"""Bytes of an answer from which on it is not taken: one might have no end."""

_PIECE = 2**20
_LONGEST = 1000
"""Characters that are shown of a server's error."""

_NO_INDEX = (400, 404, 405, 501)
"""What servers answer that have no index of their models."""


@dataclass(frozen=True)
class Address:
    """Where a server is.

    Attributes:
        prefix: the path in front of ``/v2``, where it has one.
        token: sent with every request; not shown.
    """

    host: str
    port: int
    prefix: str = ""
    tls: bool = False
    token: str | None = field(default=None, repr=False)

    @property
    def authority(self) -> str:
        """Host and port as the ``Host`` header has them."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    @property
    def credentials(self) -> dict[str, str]:
        """The header that carries the token."""
        return {} if self.token is None else {"Authorization": f"Bearer {self.token}"}

    def path(self, rest: str) -> str:
        """The path of a request: ``v2/health/ready``."""
        return f"{self.prefix}/{rest}"


def parse_url(url: str, token: str | None = None) -> Address:
    """Read ``http[s]://HOST[:PORT][/PREFIX]``; the port is 8000, of https 443, where none is given.

    Raises:
        ConfigError: it is anything else, or the token is no token.
    """
    wrong = f"--url {url!r}: write http://HOST:PORT, such as http://127.0.0.1:8000."
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise ConfigError(wrong) from error
    if parts.scheme not in ("http", "https") or not host or parts.query or parts.username:
        raise ConfigError(wrong)
    prefix = parts.path.rstrip("/").removesuffix("/v2")
    if not prefix.isascii() or not prefix.isprintable() or " " in prefix:
        raise ConfigError(wrong)
    if token is not None and not re.fullmatch(r"[!-~]+", token):
        raise ConfigError("--token: must be of printable ASCII characters, without spaces.")
    tls = parts.scheme == "https"
    return Address(host, port or (443 if tls else 8000), prefix, tls, token)


class Server:
    """A server and the one connection to it."""

    def __init__(self, url: str, *, timeout: float = TIMEOUT_S, token: str | None = None) -> None:
        self.url = url
        self.address = parse_url(url, token)
        where = (self.address.host, self.address.port)
        self._connection = (
            http.client.HTTPSConnection(
                *where, timeout=timeout, context=ssl.create_default_context()
            )
            if self.address.tls
            else http.client.HTTPConnection(*where, timeout=timeout)
        )

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def describe(self) -> dict[str, Any]:
        """Name, version and extensions of the server."""
        return self._get("v2")

    def find_model(self, name: str | None) -> str:
        """`name`, or the one model that the server has.

        Raises:
            ConfigError: it has several, or does not say which, so the name must be given.
            ServerError: it has none, or cannot be reached.
        """
        if name is not None:
            return name
        try:
            index, _ = self._call("POST", "v2/repository/index", b"{}", {})
            models = sorted({str(entry["name"]) for entry in json.loads(index)})
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ConfigError(
                f"{self.url}: its index of models cannot be read. Name one: --model NAME."
            ) from error
        except ServerError as error:
            if error.status not in _NO_INDEX:
                raise
            raise ConfigError(
                f"{self.url} does not list its models. Name one: --model NAME."
            ) from error
        if not models:
            raise ServerError(f"{self.url} has no model. Look at its log: deploy serve names them.")
        if len(models) > 1:
            known = ", ".join(models)
            raise ConfigError(f"{self.url} has the models: {known}. Name one: --model NAME.")
        return models[0]

    def metadata(self, model: str) -> dict[str, Any]:
        """What the server says of a model."""
        return self._get(_model_path(model))

    def config(self, model: str) -> dict[str, Any]:
        """The configuration of a model, where the server has Triton's extension; else empty."""
        try:
            return self._get(f"{_model_path(model)}/config")
        except ServerError as error:
            if error.status is None:
                raise
            return {}

    def signature(self, model: str) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
        """Inputs and outputs of a model."""
        found = self.metadata(model)
        inputs, outputs = found.get("inputs"), found.get("outputs")
        if not isinstance(inputs, list) or not isinstance(outputs, list):
            raise ServerError(f"{self.url} does not say what {model} takes and gives.")
        parameters = found.get("parameters")
        sizes = parameters.get("sizes") if isinstance(parameters, dict) else None
        return read_signature(inputs, sizes), read_signature(outputs)

    def infer(self, model: str, feeds: Feeds) -> dict[str, Array]:
        """Run a model on named arrays.

        Raises:
            ServerError: it cannot be reached, refuses, or answers nonsense.
        """
        request = encode_request(feeds)
        body, length = self._call("POST", infer_path(model), request.body, request.headers)
        return decode_answer(body, length)

    def _get(self, path: str) -> dict[str, Any]:
        body, _ = self._call("GET", path, None, {})
        try:
            found = json.loads(body)
        except (ValueError, RecursionError) as error:
            raise ServerError(f"{self.url}/{path} answers with what is no JSON.") from error
        if not isinstance(found, dict):
            raise ServerError(f"{self.url}/{path} answers with what is no JSON object.")
        return found

    def _call(
        self, method: str, path: str, body: bytes | None, headers: Mapping[str, str]
    ) -> tuple[bytes, str | None]:
        """Body of an answer with status 200, and how much of it is JSON, where that is said."""
        where = self.address.path(path)
        try:
            answer = self._send(method, where, body, headers)
            content = _read_body(answer)
        except (OSError, http.client.HTTPException) as error:
            self._connection.close()
            reason = str(error) or type(error).__name__
            raise ServerError(f"{self.url} cannot be reached: {reason}. Is it running?") from error
        if content is None:
            self._connection.close()
            raise ServerError(f"{self.url}/{path} answers with {_MOST} bytes or more.", 200)
        if answer.status != 200:
            raise ServerError(
                f"{self.url}/{path} answers {answer.status}: {describe_error(content)}",
                answer.status,
            )
        return content, answer.getheader(HEAD_LENGTH)

    def _send(
        self, method: str, where: str, body: bytes | None, headers: Mapping[str, str]
    ) -> http.client.HTTPResponse:
        """Send once more where the kept connection was closed in the meantime; that is no fault."""
        given = {**headers, **self.address.credentials}
        try:
            self._connection.request(method, where, body, given)
            return self._connection.getresponse()
        except (ConnectionResetError, BrokenPipeError, http.client.RemoteDisconnected):
            self._connection.close()
            self._connection.request(method, where, body, given)
            return self._connection.getresponse()


def _read_body(answer: http.client.HTTPResponse) -> bytes | None:
    """The body of an answer; None: it is of `_MOST` bytes or more."""
    if answer.length is not None:
        return answer.read() if answer.length < _MOST else None
    content = bytearray()
    while piece := answer.read(_PIECE):
        content += piece
        if len(content) >= _MOST:
            return None
    return bytes(content)


@contextlib.contextmanager
def open_server(
    url: str, *, timeout: float = TIMEOUT_S, token: str | None = None
) -> Iterator[Server]:
    """A `Server`, whose connection is closed at the end."""
    with contextlib.closing(Server(url, timeout=timeout, token=token)) as server:
        yield server


def infer_path(model: str) -> str:
    """The path of a model's inference."""
    return f"{_model_path(model)}/infer"


def _model_path(model: str) -> str:
    """The path of a model; half a surrogate pair, which no name has, becomes a question mark."""
    return f"v2/models/{quote(model, safe='', errors='replace')}"


def describe_error(content: bytes) -> str:
    """The message of an error's body, or the beginning of whatever it is."""
    try:
        return str(json.loads(content)["error"])[:_LONGEST]
    except (ValueError, KeyError, TypeError, RecursionError):
        return content[:200].decode("utf-8", "replace") or "(no body)"
