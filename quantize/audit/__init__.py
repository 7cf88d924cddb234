"""Is the data fit to calibrate on: warnings in plain words, each with its number and its advice.

What is looked at: the inputs of both splits, the ranges, and how the tensors of the model behave on
samples that were not calibrated on. Nothing here changes a range.
"""

from collections.abc import Iterable, Mapping

import numpy as np

from export.artifacts import OnnxModel
from export.onnx.cost import read_path
from export.onnx.files import read_model
from export.onnx.graph import GraphIndex
from quantize.audit.finding import Finding
from quantize.audit.inputs import Splits, check_inputs, check_samples
from quantize.audit.profile import InputProfile
from quantize.audit.tensors import Observed, check_infinite, check_tensors
from quantize.calibration.ranges import Ranges
from quantize.calibration.summaries import SummarizedModel, Wanted
from quantize.observers.statistic import Summary, TensorStatistic
from quantize.placement.layers import channel_axes

__all__ = ["AUDITED_SAMPLES", "Finding", "InputProfile", "audit_data"]

AUDITED_SAMPLES = 64
"""Evaluation samples that say enough; pass that many, spread over all of them."""


def audit_data(
    model: OnnxModel,
    ranges: Ranges,
    calibration: InputProfile,
    evaluation: Iterable[Mapping[str, np.ndarray]],
    *,
    threads: int = 0,
) -> tuple[Finding, ...]:
    """All findings: of the samples, of the inputs, of the tensors.

    Args:
        model: the float model.
        ranges: of its calibration.
        calibration: of its inputs: ``profile.watch(batches)`` around what `calibrate` is given.
        evaluation: held-out batches, about `AUDITED_SAMPLES` in all; the model is run on each once.
        threads: of ONNX Runtime; 0 lets it choose.

    Raises:
        EngineError: ONNX Runtime refuses the model or a batch.
    """
    graph = GraphIndex(read_model(model.path))
    wanted = Wanted(ranges.quantizable, channel_axes(graph), frozenset(ranges.quantizable))
    statistics: dict[str, TensorStatistic] = {}
    profile, infinite = InputProfile(), dict[str, None]()
    with SummarizedModel(model.path, wanted, threads=threads) as summarized:
        for batch in profile.watch(evaluation):
            for name, summary in summarized(batch).items():
                if summary.is_finite and not summary.is_empty:
                    statistics.setdefault(name, TensorStatistic(name)).update(summary)
                elif _holds_infinity(summary):
                    infinite[name] = None
    splits = Splits(calibration, profile)
    for name in infinite:  # what else is known of it is not of all samples
        statistics.pop(name, None)
    observed = Observed(ranges, statistics, lambda name: label_tensor(graph, name))
    return (
        *check_infinite([label_tensor(graph, name) for name in infinite]),
        *check_samples(splits),
        *check_inputs(splits),
        *check_tensors(observed),
    )


def _holds_infinity(summary: Summary) -> bool:
    """Or NaN, which shows in the mean alone; an infinite mean may be a sum that overflowed."""
    return bool(np.isnan(summary.mean).any() or np.isinf([summary.low, summary.high]).any())


def label_tensor(graph: GraphIndex, tensor: str) -> str:
    """The module path of the node that makes a tensor, or the node's name and the line of its
    source; an input's own name."""
    if tensor not in graph.producer:
        return tensor
    return read_path(graph.nodes[graph.producer[tensor]])
