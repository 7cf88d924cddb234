"""A running server, driven and checked from outside: latency under load, and parity by wire."""

from deploy.load.bench import bench_server
from deploy.load.replay import ServedModel, verify_server
from deploy.load.results import LoadReport
from deploy.load.settings import LoadSettings, make_settings, refuse_without_url
from deploy.load.wire import Server, open_server

__all__ = [
    "LoadReport",
    "LoadSettings",
    "ServedModel",
    "Server",
    "bench_server",
    "make_settings",
    "open_server",
    "refuse_without_url",
    "verify_server",
]
