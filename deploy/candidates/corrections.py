"""Biases of a build's int8 models, corrected for the mean error that int8 makes on its data."""

from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from deploy.cache import hash_model, hash_parts, package_versions
from deploy.candidates.calibration import Calibrator
from deploy.candidates.schemes import choose_scheme
from deploy.reuse import data_key
from export.artifacts import OnnxModel, Skip
from export.errors import DeployError
from quantize.calibration.ranges import Ranges
from quantize.int8.adjustments import Adjustments, LayerAdjustment
from quantize.recover.recovery import BIASES_ALONE, recover

STAGE = "correct biases"


@dataclass(frozen=True)
class Corrections:
    """The corrections of one float model, made once for each target that asks.

    They cost no time at inference, so every int8 engine has them, unless ``--recover`` leaves bias
    correction out. Synthetic inputs say nothing of means, and correct nothing.
    """

    calibrator: Calibrator
    model: OnnxModel
    ranges: Ranges | DeployError
    _found: dict[str, Adjustments] = field(default_factory=dict)

    def __call__(self, target: str) -> Adjustments | None:
        """Those for `target`, a key of `PRESETS`; None where nothing is to be corrected.

        Raises:
            DeployError: as `recover`.
        """
        problem, config = self.calibrator.problem, self.calibrator.config
        allowed = "auto" in config.recover or "bias" in config.recover
        if problem.kind == "synthetic" or not allowed or isinstance(self.ranges, DeployError):
            return None
        if target not in self._found:
            self._found[target] = self._recall(target, self.ranges)
        return self._found[target]

    def _recall(self, target: str, ranges: Ranges) -> Adjustments:
        """Made now, or taken from an earlier build of the same model and data."""
        scheme, calibrator = choose_scheme(target), self.calibrator

        def correct() -> list[list[dict[str, Any]]]:
            settings = replace(BIASES_ALONE, threads=calibrator.threads)
            return _plain(
                recover(
                    self.model,
                    ranges,
                    scheme,
                    calibrator.batches,
                    settings,
                    progress=lambda seen: calibrator.progress(replace(seen, stage=STAGE)),
                )
            )

        data = data_key(calibrator.config)
        if data is None:
            return _restore(correct())
        key = hash_parts(
            hash_model(self.model.path),
            data,
            sorted(ranges.for_scheme(scheme).items()),
            asdict(scheme),
            BIASES_ALONE.samples,
            package_versions(),
        )
        return _restore(calibrator.cache.recall("biases", key, correct))


def _plain(adjustments: Adjustments) -> list[list[dict[str, Any]]]:
    """The biases and the skipped layers, as plain values."""
    layers = [
        {"name": name, "where": layer.where, "bias": layer.bias.tolist()}
        for name, layer in adjustments.layers.items()
        if layer.bias is not None
    ]
    return [layers, [asdict(skip) for skip in adjustments.skipped]]


def _restore(plain: list[list[dict[str, Any]]]) -> Adjustments:
    layers, skipped = plain
    return Adjustments(
        {
            layer["name"]: LayerAdjustment(
                layer["where"], bias=np.array(layer["bias"], dtype=np.float32)
            )
            for layer in layers
        },
        tuple(Skip(**skip) for skip in skipped),
    )
