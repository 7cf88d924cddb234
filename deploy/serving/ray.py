"""Scale-out: the application and the batcher of one process, in every replica on Ray Serve.

Ray Serve starts replicas, spreads requests over them, replaces those that die and adds some under
load; each replica is a whole server but for the socket. It has a repository of its own and takes no
request before every model in it has repeated its recorded answers.
"""

import asyncio
import contextlib
import logging
import os
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from deploy.serving.http.body import Receive
from deploy.serving.http.infer_endpoint import Scope, Send
from deploy.serving.http.rest import RestApplication
from deploy.serving.logs import JsonFormatter, log_to_stderr
from deploy.serving.metrics import ServerStatistics
from deploy.serving.models.finding import find_bundles, hold_to, identify, make_models
from deploy.serving.models.model import ServedModel
from deploy.serving.models.repository import ModelRepository
from deploy.serving.options import ServeOptions, gather_options
from deploy.serving.ray_config import (
    APPLICATION,
    DEPLOYMENT,
    ENVIRONMENT,
    check_options,
    describe_deployment,
    describe_http,
    settle_threads,
)
from export.errors import ConfigError, EngineError
from export.optional import require

_LOG = logging.getLogger("deploy.serving")
_LOOPBACK = "127.0.0.1"
_ATTEMPTS = 3
"""How often a replica may fail to start before the deployment is given up."""


class BundleReplica:
    """One replica. Ray Serve asks it for its application, then for its health.

    Args:
        paths: bundles or repositories, on the replica's own node.
        options: of the server.
        identities: of the bundles by ``NAME/VERSION``, all to be served and no others; None:
            whatever is there.
    """

    def __init__(
        self,
        paths: Sequence[str],
        options: ServeOptions,
        identities: Mapping[str, str] | None = None,
    ) -> None:
        self._paths = [Path(path) for path in paths]
        self._options = options
        self._identities = identities
        self._repository = ModelRepository()

    async def __serve_build_asgi_app__(self) -> "ReplicaApplication":
        """The application, once every model is ready.

        Raises:
            DeployError: a bundle was changed, is another than replicas before had, or does not
                repeat its recorded answers on this node.
        """
        _log_events(self._options.log_level)
        for model in await asyncio.to_thread(self._read):
            self._repository.add(model)
            await model.load()
            if model.failure is not None:
                raise model.failure
        return ReplicaApplication(self._repository, self._options)

    def _read(self) -> list[ServedModel]:
        found = find_bundles(self._paths)
        if self._identities is not None:
            found = hold_to(found, self._identities)
        return make_models(found, self._options)

    async def check_health(self) -> None:
        """Have this replica replaced when a model of it takes no requests any more.

        Raises:
            EngineError: that is so.
        """
        waiting = [f"{m.name}: {m.obstacle}" for m in self._repository.models() if not m.ready]
        if waiting:
            raise EngineError(f"{', '.join(waiting)}. Ray Serve replaces this replica.")


class ReplicaApplication:
    """The application of a server, which also lets its engines go at the end of its life.

    Args:
        repository: the models, loaded.
        options: limits and the token.
    """

    def __init__(self, repository: ModelRepository, options: ServeOptions) -> None:
        self._repository = repository
        self._rest = RestApplication(repository, options, ServerStatistics())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or live through a lifespan."""
        if scope["type"] != "lifespan":
            await self._rest(scope, receive, send)
            return
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        self._repository.draining = True
        for model in self._repository.models():
            await model.unload()
        await send({"type": "lifespan.shutdown.complete"})


def build_application(args: dict[str, Any]) -> Any:
    """What the config file of Ray Serve names as ``import_path``.

    Args:
        args: ``bundles``, a list of paths; ``identities`` as `BundleReplica` has them, or none; and
            options of ``deploy serve`` by the names of their flags. ``DEPLOY_SERVE_*`` of the node
            where this runs count where `args` says nothing.

    Returns:
        A bound Ray Serve application.

    Raises:
        ConfigError: an option that is not known, a value that cannot be used, or no bundles.
    """
    flags = dict(args)
    bundles = flags.pop("bundles", None)
    if not isinstance(bundles, list) or not bundles or not all(isinstance(b, str) for b in bundles):
        raise ConfigError(f"args: bundles must be a list of paths, not {bundles!r}.")
    identities = flags.pop("identities", None)
    if identities is not None and not _is_text_by_text(identities):
        raise ConfigError("args: identities must be text by NAME/VERSION, as it was written.")
    options = gather_options(flags, os.environ, Path.cwd())
    return make_application(bundles, options, identities)


def _is_text_by_text(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(each, str) for each in value.values())


def make_application(
    paths: Sequence[str], options: ServeOptions, identities: Mapping[str, str] | None
) -> Any:
    """A bound Ray Serve application of the bundles at `paths`; the rest is as in `BundleReplica`.

    Raises:
        ConfigError: options that Ray Serve has not.
        MissingExtraError: Ray is not installed.
    """
    check_options(options)
    serve = require("ray.serve", extra="ray")
    options = settle_threads(options)
    deployment = serve.deployment(serve.ingress()(BundleReplica)).options(
        name=DEPLOYMENT, max_constructor_retry_count=_ATTEMPTS, **describe_deployment(options)
    )
    return deployment.bind(list(paths), options, identities)


def serve_on_ray(paths: Sequence[Path], options: ServeOptions) -> None:
    """Serve the bundles at `paths` on Ray Serve until SIGTERM or SIGINT.

    With ``RAY_ADDRESS`` in the environment it joins that cluster, and in the end takes only its own
    application away; else it starts a cluster of this machine, on loopback, and ends it.

    Raises:
        BundleError, ConfigError, MissingExtraError: before anything is started.
        EngineError: no replica could be started.
    """
    check_options(options)
    identities = identify(make_models(find_bundles(paths), options))
    log_to_stderr(options.log_level)
    bundles = [os.path.abspath(path) for path in paths]
    with _cluster(options.host) as (serve, joined):
        serve.start(proxy_location="EveryNode", http_options=describe_http(options))
        application = make_application(bundles, options, identities)
        try:
            serve.run(application, name=APPLICATION, route_prefix="/")
            _LOG.info("ready", extra={"http_port": options.port})
            _wait_for_signal()
            _LOG.info("draining: replicas answer what they have")
        except RuntimeError as error:
            raise EngineError(f"Ray Serve could not start the replicas: {error}") from error
        finally:
            if joined:
                serve.delete(APPLICATION)
            else:
                serve.shutdown()
    _LOG.info("stopped")


@contextlib.contextmanager
def _cluster(host: str) -> Iterator[tuple[Any, bool]]:
    """Ray Serve on a cluster, and whether that was there before."""
    joined = "RAY_ADDRESS" in os.environ
    defaults = dict(ENVIRONMENT)
    if not joined:  # "no clusters" is Ray's way to say loopback; the address below is not enough
        defaults["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    if not joined and host == _LOOPBACK:  # HAProxy's statistics would listen on every address
        defaults["RAY_SERVE_ENABLE_HA_PROXY"] = "0"
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
    if os.environ["RAY_SERVE_ENABLE_HA_PROXY"] == "0":
        _LOG.info("without HAProxy, which is faster: RAY_SERVE_ENABLE_HA_PROXY=1 turns it on")
    ray = require("ray", extra="ray")  # reads the environment as it is imported
    local = {"address": "local", "dashboard_host": _LOOPBACK, "_node_ip_address": _LOOPBACK}
    handler = signal.getsignal(signal.SIGTERM)
    ray.init(namespace="serve", **({} if joined else local))
    signal.signal(signal.SIGTERM, handler)  # Ray's own would end this process without a word
    try:
        yield require("ray.serve", extra="ray"), joined
    finally:
        ray.shutdown()


def _wait_for_signal() -> None:
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    stop.wait()


def _log_events(level: str) -> None:
    """Our events as JSON on the replica's stderr, which Ray collects; Ray's own stay as is."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter())
    logger = logging.getLogger("deploy")
    logger.handlers[:] = [handler]
    logger.propagate = False
    logger.setLevel(level.upper())
