"""What Ray Serve is told: the options of a server in its words, and as the file that it reads.

Where the two have a limit of the same kind, one follows from the other.
"""

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from deploy.serving.models.finding import find_bundles, identify, make_models
from deploy.serving.options import ServeOptions
from export.errors import ConfigError

APPLICATION = "deploy"
DEPLOYMENT = "BundleReplica"
IMPORT_PATH = "deploy.serving.ray:build_application"
ENVIRONMENT: Mapping[str, str] = {
    "RAY_AUTH_MODE": "token",
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
}
"""What every node of the cluster is to be started with; Ray reads it on import."""

_OURS_FIRST_S = 5.0
"""Seconds after our own deadline until Ray Serve gives a request up, with 408 and no JSON."""

_HEALTH_PERIOD_S = 5.0
_SURGE_PERCENT = 25
"""Replicas beyond their number while a new version takes over: it proves itself first."""

_NOT_ARGUMENTS = frozenset(
    {"host", "port", "grpc_port", "metrics_port", "max_connections", "receive_timeout"}
    | {"keep_alive", "drain", "stop_timeout", "token", "tls_cert", "tls_key", "workers", "control"}
    | {"traces"}
    | {"min_replicas", "max_replicas", "target_requests", "replica_cpus", "replica_gpus"}
)
"""Options that a replica has no use for, or that stand elsewhere in the file; a token in none."""


def check_options(options: ServeOptions) -> None:
    """Refuse what Ray Serve has no place for, rather than serve without it.

    Raises:
        ConfigError: TLS, workers, a control socket or traces are asked for.
    """
    if options.tls_cert:
        raise ConfigError(
            "--tls-cert is for one process: between the proxy and the replicas of Ray Serve it "
            "would not hold. Leave it out, and end TLS in front of the proxy."
        )
    if options.workers > 1:
        raise ConfigError(
            f"--workers {options.workers} is for one machine; on Ray Serve set --max-replicas."
        )
    if options.control:
        raise ConfigError(
            "--control is for one process; on Ray Serve deploy a config file that names the new "
            "bundle."
        )
    if options.traces:
        raise ConfigError(
            "--traces is for one process; Ray Serve leaves traces of its own: set them up there."
        )


def describe_deployment(options: ServeOptions) -> dict[str, Any]:
    """Options of the deployment, as Ray Serve names them.

    A replica has one run of its engines in hand and one waiting; what comes beyond waits in front
    of the replicas, where any of them may take it, up to `queue_rows` requests, then 503.
    """
    full = options.instances * options.max_batch
    return {
        "max_ongoing_requests": 2 * full,
        "max_queued_requests": options.queue_rows,
        "max_surge_percent": _SURGE_PERCENT,
        "autoscaling_config": {
            "min_replicas": options.min_replicas,
            "max_replicas": options.max_replicas,
            "target_ongoing_requests": options.target_requests or float(full),
            "upscale_delay_s": 30.0,
            "downscale_delay_s": 600.0,
        },
        "ray_actor_options": {
            "num_cpus": options.replica_cpus,
            "num_gpus": options.replica_gpus,
        },
        "health_check_period_s": _HEALTH_PERIOD_S,
        "health_check_timeout_s": options.timeout,
        "graceful_shutdown_wait_loop_s": 0.5,
        "graceful_shutdown_timeout_s": options.drain + options.stop_timeout,
    }


def settle_threads(options: ServeOptions) -> ServeOptions:
    """`options` with the threads of an engine: a replica owns its share of a node alone."""
    if options.threads:
        return options
    threads = max(1, int(options.replica_cpus) // options.instances)
    return dataclasses.replace(options, threads=threads)


def describe_http(options: ServeOptions) -> dict[str, Any]:
    """Options of the proxies, as Ray Serve names them."""
    return {
        "host": options.host,
        "port": options.port,
        "keep_alive_timeout_s": round(options.keep_alive),
        "request_timeout_s": options.timeout + _OURS_FIRST_S,
    }


def write_config(path: Path, paths: Sequence[Path], options: ServeOptions) -> Path:
    """Write the config file of ``serve run`` and ``serve deploy``.

    Args:
        path: of the file.
        paths: bundles, which every node must have there too; written as absolute paths.
        options: of the server. The token is left out: nodes have it in ``DEPLOY_SERVE_TOKEN``.

    Returns:
        `path`.

    Raises:
        BundleError, ConfigError: no such bundles or damaged ones, options that Ray Serve has not,
            or `path` cannot be written.
    """
    check_options(options)
    arguments = {
        "bundles": [os.path.abspath(each) for each in paths],
        "identities": identify(make_models(find_bundles(paths), options)),
        **_describe_arguments(settle_threads(options)),
    }
    lines = [
        "# serve run FILE, or serve deploy FILE on a cluster whose nodes were started with",
        *(f"#   {name}={value}" for name, value in ENVIRONMENT.items()),
        "# Every node needs deploykit[ray] and the bundles at these paths.",
        "proxy_location: EveryNode",
        "http_options:",
        *_lines(describe_http(options), 2),
        "applications:",
        f"  - name: {APPLICATION}",
        "    route_prefix: /",
        f"    import_path: {IMPORT_PATH}",
        "    args:  # a change here is a new version of every replica",
        *_lines(arguments, 6),
        "    deployments:  # a change of numbers here does not",
        f"      - name: {DEPLOYMENT}",
        *_lines(describe_deployment(options), 8),
    ]
    try:
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"--ray-config {path} cannot be written: {error.strerror}. Name another file."
        ) from error
    return path


def _describe_arguments(options: ServeOptions) -> dict[str, Any]:
    """Options of a replica that are not the default, under the names of flags."""
    fields = [f for f in dataclasses.fields(options) if f.name not in _NOT_ARGUMENTS]
    given = {f.name: getattr(options, f.name) for f in fields}
    return {
        field.name.replace("_", "-"): given[field.name]
        for field in fields
        if given[field.name] != field.default
    }


def _lines(values: Mapping[str, Any], indent: int) -> list[str]:
    """A mapping as YAML, of which JSON's scalars and lists are a part."""
    lines = []
    for key, value in values.items():
        if isinstance(value, Mapping):
            lines += [f"{' ' * indent}{key}:", *_lines(value, indent + 2)]
        else:
            lines.append(f"{' ' * indent}{key}: {json.dumps(value)}")
    return lines
