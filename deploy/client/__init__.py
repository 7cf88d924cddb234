"""A running server, driven and checked from outside: latency under load, and parity by wire."""

from deploy.client.bench import bench_server
from deploy.client.replay import ServedModel, verify_server
from deploy.client.results import LoadReport
from deploy.client.settings import LoadSettings, make_settings, refuse_without_url
from deploy.client.wire import Server, open_server

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
