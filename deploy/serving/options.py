"""The options of ``deploy serve``, from four places with one precedence.

Flags go before the environment (``DEPLOY_SERVE_MAX_BATCH``), that before the file (``--config``, or
``[tool.deploy.serve]`` of the working directory's ``pyproject.toml``), that before the defaults.
"""

import dataclasses
import difflib
import math
import re
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from deploy.option_values import (
    check_choice,
    check_option,
    make_float,
    read_toml,
    refuse_unknown,
)
from deploy.serving.models.guards import NonFinite
from export.errors import ConfigError

PREFIX = "DEPLOY_SERVE_"
_SERVICE_LINK = re.compile(r"(\w+_)?(SERVICE_(HOST|PORT(_\w+)?)|PORT_\d+_(TCP|UDP|SCTP)(_\w+)?)")
"""Variables that Kubernetes gives all containers beside a Service whose name begins with
``deploy-serve``; one more ends in ``PORT`` and holds a URL."""

_TRUTHS = {"true": True, "1": True, "false": False, "0": False}
LogLevel = Literal["debug", "info", "warning", "error"]


@dataclass(frozen=True)
class ServeOptions:
    """Every option of ``deploy serve``. Each field is a flag, a key of the file and a variable.

    Attributes:
        host: address to listen on; the machine itself alone, unless told otherwise.
        port: of HTTP; 0: any free one.
        grpc_port: of gRPC; 0: none.
        metrics_port: of /metrics and health alone; 0: they are on `port` only.
        engine: of the bundle; empty: its winner, or another where that cannot be opened.
        rebuild: build an engine of TensorRT that does not fit this machine again, into the user's
            cache.
        fallback: take another engine of the bundle where the winner cannot be opened; without, the
            model is not ready then.
        instances: engines opened side by side, each with a thread of its own.
        threads: intra-op threads of each; 0: the cores shared out.
        workers: processes that share the port; one that dies is started anew.
        max_batch: rows of a run, at most.
        max_delay_ms: how long a request may wait for others while an engine is free.
        queue_rows: rows that may wait, at most; beyond, 503.
        queue_mb: MiB of inputs that may wait, at most.
        timeout: seconds until a request is given up with 504; its sender may ask for less.
        max_body_mb: MiB of a request's body, at most.
        max_inflight_mb: MiB of all bodies and answers that are held at a time.
        max_connections: open at a time; more are closed at once.
        receive_timeout: seconds within which a request must have arrived whole, and its answer
            must have been taken.
        keep_alive: seconds that a connection may be idle between requests.
        drain: seconds from SIGTERM, in which ready answers 503 and requests are still taken.
        stop_timeout: seconds that requests then have to be answered.
        shadow: share of requests that also run on the float32 model, 0 to 1.
        nonfinite: ``refuse`` or ``report`` outputs with NaN or infinity.
        trust: packages whose code the user's own model file may run.
        token: what ``Authorization: Bearer`` must hold; empty: nothing is asked.
        tls_cert, tls_key: PEM files; both or none.
        control: a Unix socket for ``deploy ctl``; empty: none.
        traces: URL of an OpenTelemetry collector, by HTTP; empty: as OTEL_* say, else none.
        log_level: of the log on stderr, which is JSON, a line an event.
        min_replicas, max_replicas: on Ray Serve, which moves between them with the load.
        target_requests: on Ray Serve, requests in a replica above which another is started; 0: as
            many as fill its engines.
        replica_cpus, replica_gpus: on Ray Serve, what a replica asks of its node.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    grpc_port: int = 8001
    metrics_port: int = 0
    engine: str = ""
    rebuild: bool = False
    fallback: bool = True
    instances: int = 1
    threads: int = 0
    workers: int = 1
    max_batch: int = 8
    max_delay_ms: float = 0.0
    queue_rows: int = 256
    queue_mb: int = 256
    timeout: float = 30.0
    max_body_mb: int = 64
    max_inflight_mb: int = 1024
    max_connections: int = 1024
    receive_timeout: float = 30.0
    keep_alive: float = 75.0
    drain: float = 1.0
    stop_timeout: float = 30.0
    shadow: float = 0.0
    nonfinite: NonFinite = "refuse"
    trust: tuple[str, ...] = ()
    token: str = ""
    tls_cert: str = ""
    tls_key: str = ""
    control: str = ""
    traces: str = ""
    log_level: LogLevel = "info"
    min_replicas: int = 1
    max_replicas: int = 1
    target_requests: float = 0.0
    replica_cpus: float = 1.0
    replica_gpus: float = 0.0

    def __post_init__(self) -> None:
        check_option(bool(self.host.strip()), "host", repr(self.host), "an address or a name")
        for name in ("port", "grpc_port", "metrics_port"):
            check_option(0 <= getattr(self, name) < 2**16, name, getattr(self, name), "0 to 65535")
        for name in ("instances", "max_batch", "queue_rows", "queue_mb", "max_body_mb"):
            check_option(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")
        for name in ("max_inflight_mb", "max_connections", "workers"):
            check_option(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")
        check_option(self.threads >= 0, "threads", self.threads, "0 (shared out) or more")
        for name in ("timeout", "receive_timeout", "keep_alive", "stop_timeout"):
            value = getattr(self, name)
            check_option(0 < value < math.inf, name, value, "seconds, more than 0")
        for name in ("max_delay_ms", "drain", "target_requests", "replica_cpus", "replica_gpus"):
            check_option(
                0 <= getattr(self, name) < math.inf, name, getattr(self, name), "0 or more"
            )
        check_option(self.min_replicas >= 1, "min_replicas", self.min_replicas, "1 or more")
        at_least = f"at least --min-replicas {self.min_replicas}"
        check_option(
            self.max_replicas >= self.min_replicas, "max_replicas", self.max_replicas, at_least
        )
        check_option(0 <= self.shadow <= 1, "shadow", self.shadow, "a share, 0 to 1")
        check_choice("nonfinite", self.nonfinite, NonFinite)
        check_choice("log_level", self.log_level, LogLevel)
        if bool(self.tls_cert) != bool(self.tls_key):
            given, other = ("cert", "key") if self.tls_cert else ("key", "cert")
            raise ConfigError(f"--tls-{given} needs --tls-{other} as well.")
        plain = re.fullmatch("[!-~]*", self.token) is not None  # else no client could send it
        check_option(plain, "token", "...", "of printable ASCII characters, without spaces")

    def __repr__(self) -> str:
        shown = dataclasses.replace(self, token="") if self.token else self
        fields = {field.name: getattr(shown, field.name) for field in dataclasses.fields(self)}
        return f"ServeOptions({', '.join(f'{k}={v!r}' for k, v in fields.items() if k != 'token')})"


def gather_options(
    flags: Mapping[str, Any], environment: Mapping[str, str], directory: Path
) -> ServeOptions:
    """The options of a start, from all places.

    Args:
        flags: by name; None and empty ones are not given. ``config`` names the file.
        environment: variables.
        directory: where ``pyproject.toml`` is looked for, without ``config``.

    Raises:
        ConfigError: an option that is not known, a value that cannot be used, or a token that is
            empty.
    """
    given = {name: value for name, value in flags.items() if value not in (None, ())}
    file = given.pop("config", None)
    values = _read_file(Path(file)) if file else _read_project(directory)
    values |= {
        name.removeprefix(PREFIX).lower(): _parse(name, text)
        for name, text in environment.items()
        if name.startswith(PREFIX) and not _is_service_link(name, text)
    }
    values |= _clean(given, "command line")
    if values.get("token") == "":  # a variable that was to be filled in, most likely
        raise ConfigError(
            f"The token that is given is empty, and nothing would be asked for. Give one, or none: "
            f"unset {PREFIX}TOKEN."
        )
    return ServeOptions(**values)


def _read_file(path: Path) -> dict[str, Any]:
    return _clean(read_toml(path, fix="Mend it, or name a file of options."), str(path))


def _read_project(directory: Path) -> dict[str, Any]:
    path = directory / "pyproject.toml"
    if not path.is_file():
        return {}
    table: Any = read_toml(path, fix="Mend it or remove it.")
    for key in ("tool", "deploy", "serve"):
        table = table.get(key, {})
        if not isinstance(table, dict):
            raise ConfigError(f"{path}: tool.deploy.serve must be a table: [tool.deploy.serve].")
    return _clean(table, f"{path}: [tool.deploy.serve]")


def _clean(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Values by field, each of its field's type."""
    hints = typing.get_type_hints(ServeOptions)
    cleaned = {}
    for key, value in values.items():
        name = key.replace("-", "_")
        if name not in hints:
            raise refuse_unknown(key, sorted(hint.replace("_", "-") for hint in hints), where)
        if name in cleaned:
            raise ConfigError(f"{where}: {key} is there twice, with '-' and with '_'. Keep one.")
        cleaned[name] = _convert(value, hints[name], f"{where}: {key}")
    return cleaned


def _convert(value: Any, hint: Any, where: str) -> Any:
    if typing.get_origin(hint) is tuple:
        items = [value] if isinstance(value, str) else value
        if not isinstance(items, (list, tuple)) or not all(isinstance(i, str) for i in items):
            raise ConfigError(f"{where} must be a list of names, not {value!r}.")
        return tuple(items)
    kind = str if typing.get_origin(hint) is Literal else hint
    if kind is float and type(value) is int:
        return make_float(value, where)
    if type(value) is not kind:
        raise ConfigError(f"{where} must be {kind.__name__}, not {value!r}.")
    return value


def _is_service_link(name: str, text: str) -> bool:
    """Whether a variable tells of a Service of Kubernetes and is no option."""
    rest = name.removeprefix(PREFIX)
    if _SERVICE_LINK.fullmatch(rest):
        return True
    return rest.endswith("PORT") and re.match("(tcp|udp|sctp)://", text) is not None


def _parse(name: str, text: str) -> Any:
    """A variable's text as a value of its option's type."""
    field = name.removeprefix(PREFIX).lower()
    hint = typing.get_type_hints(ServeOptions).get(field)
    if hint is None:
        known = [f"{PREFIX}{f.name.upper()}" for f in dataclasses.fields(ServeOptions)]
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"Did you mean {close[0]}? " if close else ""
        raise ConfigError(f"{name}: there is no such option. {hint}Known: {', '.join(known)}.")
    if typing.get_origin(hint) is tuple:
        return tuple(part.strip() for part in text.split(",") if part.strip())
    if hint is bool:
        if text.lower() not in _TRUTHS:
            raise ConfigError(f"{name} must be true or false, not {text!r}.")
        return _TRUTHS[text.lower()]
    if hint not in (int, float):
        return text
    try:
        return hint(text)
    except ValueError as error:
        raise ConfigError(f"{name} must be {hint.__name__}, not {text!r}.") from error
