"""How many samples the noise of blocks is measured on, so that a slow model does not take hours."""

import math
import time
from collections.abc import Sequence

from deploy.engines.base import Feeds
from deploy.judging.rows import take_rows
from export.artifacts import OnnxModel
from export.onnx.execute import ExposedModel

_FEWEST = 2
"""Samples that still tell which block costs most."""


def fit_samples(seconds: float, runs: int, budget: float) -> int:
    """Samples that `runs` runs can be made on within `budget` seconds, a power of two.

    So two builds that differ a little in speed measure the same.

    Args:
        seconds: that one sample takes.
        runs: over all samples.
        budget: may be spent already.
    """
    fitting = max(budget, 0.0) / max(seconds * runs, 1e-9)
    power = int(math.log2(min(max(fitting, 1.0), 2.0**20)))
    return max(_FEWEST, int(2**power))


def time_sample(model: OnnxModel, feeds: Feeds, *, static: bool, threads: int) -> float:
    """Seconds that ONNX Runtime takes for one sample of a batch, once it is warm.

    Args:
        model: the float model.
        feeds: the batch.
        static: it is the only batch size that the model takes.
        threads: of ONNX Runtime.

    Raises:
        EngineError: ONNX Runtime refuses the model or the batch.
    """
    batch = feeds if static else take_rows(feeds, 0, 1)
    with ExposedModel(model.path, [spec.name for spec in model.outputs], threads=threads) as run:
        run(batch)
        started = time.perf_counter()
        run(batch)
        return (time.perf_counter() - started) / _rows(batch)


def keep_samples(batches: Sequence[Feeds], samples: int, *, static: bool) -> list[Feeds]:
    """The first of them; of batches that must be full as many as that takes."""
    kept: list[Feeds] = []
    left = samples
    for batch in batches:
        if left <= 0:
            break
        kept.append(batch if static else take_rows(batch, 0, left))
        left -= _rows(batch)
    return kept


def count_samples(batches: Sequence[Feeds]) -> int:
    """In all."""
    return sum(map(_rows, batches))


def _rows(batch: Feeds) -> int:
    return len(next(iter(batch.values())))
