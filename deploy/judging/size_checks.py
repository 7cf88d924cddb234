"""Candidates held against the reference at other sizes of their dynamic axes.

Exporters bake sizes in. Samples that are cut, or begin anew at their end, hold the values that the
model is made for, which int8 needs; what is compared is whether a candidate is as near to the
reference there as it is at the best size.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from deploy.engines.base import Array, Feeds
from deploy.judging.parity import ParityAccumulator
from export.artifacts import TensorSpec
from export.errors import DeployError
from export.ranges import describe_sizes, probe_sizes
from quantize.calibration.calibrate import Again

_RESIZED_BATCHES = 2
"""Batches that are calibrated on at every other size of the dynamic axes."""

Run = Callable[[Feeds], dict[str, Array]]


@dataclass(frozen=True)
class Comparison:
    """A candidate that runs, and the sums of what was seen of it."""

    process: Run
    parity: ParityAccumulator


def check_sizes(
    reference: Run,
    running: Mapping[str, Comparison],
    feeds: Feeds,
    inputs: Sequence[TensorSpec],
) -> dict[str, str]:
    """Run every candidate at the ends of the ranges of `inputs` and at odd sizes between.

    Args:
        reference: what is right.
        running: the candidates by name; what is seen goes into their sums.
        feeds: samples of the best sizes.
        inputs: of the model.

    Returns:
        By name why one fails there; those that run are not among them.
    """
    failed: dict[str, str] = {}
    for sizes in probe_sizes(inputs):
        resized = resize_samples(feeds, inputs, sizes)
        expected = reference(resized)
        for name, comparison in running.items():
            if name in failed:
                continue
            try:
                comparison.parity.check_sizes(expected, comparison.process(resized), sizes=sizes)
            except (DeployError, ValueError) as error:
                failed[name] = f"at {describe_sizes(sizes)}: {error}"
    return failed


def resize_samples(
    feeds: Feeds, inputs: Sequence[TensorSpec], sizes: Mapping[str, int]
) -> dict[str, Array]:
    """The samples with their dynamic axes cut to `sizes`, or begun anew where they are longer."""
    resized = {}
    for spec in inputs:
        array = feeds[spec.name]
        for axis, name in enumerate(spec.shape):
            if isinstance(name, str) and name in sizes:
                array = np.take(array, np.arange(sizes[name]) % array.shape[axis], axis)
        resized[spec.name] = np.ascontiguousarray(array)
    return resized


def batches_of_all_sizes(
    batches: Callable[[], Iterator[Feeds]], inputs: Sequence[TensorSpec]
) -> Iterator[Feeds | Again]:
    """The batches, and the first of them again at other sizes of the dynamic axes of `inputs`.

    Padding reaches less far into larger maps, and some layers are larger there than at the best
    size; ranges that never saw them would clip.
    """
    yield from batches()
    for sizes in probe_sizes(inputs):
        for batch in itertools.islice(batches(), _RESIZED_BATCHES):
            yield Again(resize_samples(batch, inputs, sizes))
