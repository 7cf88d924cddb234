"""Drives a running server and reports its latency and throughput."""

import math
import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from deploy.bundle.folder import Bundle
from deploy.client.connection import write_request
from deploy.client.generator import drive
from deploy.client.results import LoadReport, Target, summarize
from deploy.client.settings import LoadSettings
from deploy.client.tensors import encode_request
from deploy.client.wire import Server, open_server
from deploy.engines.base import Feeds
from deploy.inputs.declared import numpy_dtype, synthetic_feeds
from deploy.measuring.machine import describe_machine
from export.artifacts import TensorSpec
from export.errors import ServerError

_MOST = 2**30
"""Bytes of inputs that are made up."""

_MOST_AXES = 32
_WARM_CALLS = 20
_WARM_S = 2.0


def bench_server(
    url: str,
    settings: LoadSettings,
    *,
    model: str | None = None,
    bundle: Bundle | None = None,
    token: str | None = None,
) -> LoadReport:
    """Drive the server at `url`, after a few requests that are not counted.

    Args:
        url: such as ``http://127.0.0.1:8000``.
        settings: rate or concurrency, seconds, batch.
        model: None: the only one that the server has.
        bundle: whose golden inputs are sent; None: synthetic ones, by the model's metadata.
        token: that the server asks for, where it does.

    Raises:
        ServerError: the server cannot be reached, refuses the very first request, or describes
            inputs that cannot be made up.
        ConfigError: the URL cannot be read.
    """
    with open_server(url, timeout=settings.timeout, token=token) as server:
        name = server.find_model(model)
        about = server.describe()
        feeds = _make_feeds(server, name, settings, bundle)
        _warm_up(server, name, feeds)
        request = write_request(server.address, name, encode_request(feeds))
        target = Target(
            url, name, str(about.get("name", "")), str(about.get("version", "")), len(request)
        )
        settings = replace(settings, batch=_count_rows(feeds))
        trace = drive(server.address, request, settings)
    return summarize(trace, target, settings, describe_machine())


def _make_feeds(server: Server, name: str, settings: LoadSettings, bundle: Bundle | None) -> Feeds:
    """Golden or synthetic inputs, `batch` rows of them, or as many as the model's shape has."""
    if bundle is None:
        inputs, _ = server.signature(name)
        _check_size(server, inputs, settings.batch)
        return synthetic_feeds(inputs, settings.batch, seed=settings.seed)
    golden = bundle.golden().inputs
    if not all(spec.has_dynamic_batch for spec in bundle.manifest.inputs):
        return golden
    rows = np.arange(settings.batch)
    return {key: array[rows % len(array)] for key, array in golden.items()}


def _check_size(server: Server, inputs: Sequence[TensorSpec], batch: int) -> None:
    """Inputs are made up by what the server says of them, which may be anything.

    Raises:
        ServerError: they would be too large to be sent.
    """
    sizes = (
        math.prod(spec.with_batch(batch)) * numpy_dtype(spec.dtype).itemsize for spec in inputs
    )
    if sum(sizes) > _MOST or any(len(spec.shape) > _MOST_AXES for spec in inputs):
        shapes = "; ".join(map(str, inputs))[:200]
        raise ServerError(
            f"{server.url} describes inputs that are too large to be made up: {shapes}. Lower "
            "--batch, or pass a bundle, whose golden inputs are sent then."
        )


def _count_rows(feeds: Feeds) -> int:
    """The batch of a request: a model with a static one has its own."""
    sizes = {array.shape[0] for array in feeds.values() if array.ndim}
    return sizes.pop() if len(sizes) == 1 else 1


def _warm_up(server: Server, name: str, feeds: Feeds) -> None:
    """The first request must be answered; what refuses later ones now and then may be driven."""
    server.infer(name, feeds)
    end = time.perf_counter() + _WARM_S
    for _ in range(_WARM_CALLS - 1):
        try:
            server.infer(name, feeds)
        except ServerError as error:
            if error.status is None:
                raise
        if time.perf_counter() > end:
            break
