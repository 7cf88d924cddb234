"""What options need of each other and of this machine, looked at before anything is opened."""

import os
from pathlib import Path

from deploy.serving.certificates import Certificate
from deploy.serving.options import ServeOptions
from deploy.serving.tracing.spans import open_sender
from export.errors import ConfigError


def check_prerequisites(options: ServeOptions) -> None:
    """Refuse what would otherwise be found out only once bundles were read or ports opened.

    Raises:
        ConfigError: several workers cannot have what is asked for, the TLS files cannot be used,
            no socket can be made where ``--control`` says, or ``--traces`` is no URL.
        MissingExtraError: traces are asked for, and OpenTelemetry is not installed.
    """
    if options.workers > 1:
        _check_workers(options)
    if options.tls_cert:
        Certificate(options.tls_cert, options.tls_key)
    folder = Path(options.control).absolute().parent
    if options.control and not folder.is_dir():
        raise ConfigError(f"--control {options.control}: there is no folder {folder}. Make it.")
    open_sender(options.traces, os.environ)


def _check_workers(options: ServeOptions) -> None:
    """Refuse what only a lone process can offer."""
    if options.control:
        raise ConfigError("--control needs one worker: versions are swapped within a process.")
    if options.metrics_port:
        raise ConfigError("--metrics-port needs one worker; metrics of all are at --port.")
