"""Calibration of a build: its data in batches, and ranges that an earlier build may have found."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from deploy.cache import Cache, hash_model, hash_parts, package_versions
from deploy.config import BuildConfig
from deploy.engines.base import Feeds
from deploy.inputs.dataset import fit_rows
from deploy.judging.size_checks import batches_of_all_sizes
from deploy.reuse import data_key
from deploy.source import Problem
from export.artifacts import OnnxModel
from export.onnx.tensor_types import float_tensors
from export.progress import ProgressCallback, ignore_progress
from export.ranges import probe_sizes
from quantize.audit import AUDITED_SAMPLES, Finding, InputProfile, audit_data
from quantize.calibration.calibrate import calibrate
from quantize.calibration.ranges import Ranges
from quantize.observers.statistic import ChannelStatistic

_BATCH = 8
_FORMAT = 4
"""Of what is kept of ranges; another one is not found."""


@dataclass(frozen=True)
class Calibrator:
    """Calibrates float models of one problem on its calibration samples."""

    problem: Problem
    config: BuildConfig
    threads: int
    cache: Cache
    progress: ProgressCallback = ignore_progress

    def batches(self) -> Iterator[Feeds]:
        """The calibration samples, from the start each time; a static batch is always full."""
        static = self.problem.static_batch
        size = static or fit_rows(_BATCH, self.problem.row_bytes)
        for batch in self.problem.calibration.batches(size):
            if static in (None, len(next(iter(batch.values())))):
                yield batch

    def _count_samples(self) -> int:
        """Those that fill batches."""
        samples = len(self.problem.calibration)
        return samples - samples % (self.problem.static_batch or 1)

    @property
    def observer(self) -> str:
        """As chosen; on synthetic inputs, which say nothing of ranges, the cheapest."""
        return choose_observer(self.problem, self.config)

    def __call__(self, model: OnnxModel) -> Ranges:
        """The ranges of all float tensors of `model`.

        Raises:
            DeployError: the data or the model cannot be calibrated.
        """
        data = data_key(self.config)
        sizes = repr(probe_sizes(self.problem.signature.inputs))
        model_hash = hash_model(model.path)
        key = hash_parts(_FORMAT, model_hash, data, sizes, self.observer, package_versions())
        found = self.cache.find("ranges", key) if data is not None else None
        if found is not None:
            return _restore(found)
        ranges = calibrate(
            model,
            batches_of_all_sizes(self.batches, self.problem.signature.inputs),
            observer=self.observer,
            tensors=float_tensors(model.path),
            total=self._count_samples(),
            threads=self.threads,
            progress=self.progress,
        )
        if data is not None:
            self.cache.keep("ranges", key, _plain(ranges))
        return ranges

    def audit(self, model: OnnxModel, ranges: Ranges) -> tuple[Finding, ...]:
        """What is wrong, or may be, with the data that `ranges` of `model` come from.

        Raises:
            EngineError: ONNX Runtime refuses a batch.
        """
        profile = InputProfile()
        for _ in profile.watch(self.batches()):
            pass
        return audit_data(model, ranges, profile, self._held_out(), threads=self.threads)

    def _held_out(self) -> Iterator[Feeds]:
        """A few evaluation samples, spread over all of them; a static batch is always full."""
        data, rows = self.problem.evaluation, fit_rows(_BATCH, self.problem.row_bytes)
        size = self.problem.static_batch or rows
        count = min(AUDITED_SAMPLES, len(data))
        chosen = np.linspace(0, len(data) - 1, count).round().astype(np.int64)
        for start in range(0, count, size):
            part = chosen[start : start + size]
            if self.problem.static_batch in (None, len(part)):
                yield data.batch(part)


def choose_observer(problem: Problem, config: BuildConfig) -> str:
    """The observer that a build uses."""
    return "minmax" if problem.kind == "synthetic" else config.observer


def _plain(ranges: Ranges) -> dict[str, Any]:
    """As plain values; arrays as lists."""
    values = {item.name: getattr(ranges, item.name) for item in fields(ranges)}
    channels = {
        name: [array.tolist() for array in (found.low, found.high, found.mean)]
        for name, found in ranges.channels.items()
    }
    return {
        key: dict(value) if isinstance(value, Mapping) else value
        for key, value in {**values, "channels": channels}.items()
    }


def _restore(plain: dict[str, Any]) -> Ranges:
    """The ranges that `_plain` was given."""
    values = dict(plain)
    for key in ("ranges", "symmetric", "extents", "earlier", "settled"):
        values[key] = {name: (low, high) for name, (low, high) in plain[key].items()}
    values["channels"] = {
        name: ChannelStatistic(*(np.array(array) for array in arrays))
        for name, arrays in plain["channels"].items()
    }
    return Ranges(**values)
