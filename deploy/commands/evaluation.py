"""The samples that engines of a bundle are judged on once more, and how its labels are read."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import onnx

from deploy.bundle.folder import FALLBACK, Bundle
from deploy.config import BuildConfig
from deploy.engines.base import Feeds
from deploy.engines.process import EngineProcess
from deploy.inputs.data import CALLABLE_SAMPLES, Dataset, check_data, open_data
from deploy.judging.checking import CheckPlan
from deploy.judging.labelled_outputs import choose_labelled
from deploy.judging.labels import join_sizes
from deploy.judging.rows import Outputs
from export.artifacts import TensorSpec
from export.errors import ConfigError, DataError
from export.images import channels_first
from export.onnx.cost import count_row_bytes


class FloatReference:
    """The bundle's own float32 engine in place of eager, which it was held against when built."""

    def __init__(self, process: EngineProcess, outputs: tuple[TensorSpec, ...]) -> None:
        self._process = process
        self.outputs = outputs

    def __call__(self, feeds: Feeds) -> Outputs:
        """Its outputs."""
        return self._process(feeds)

    def floor(self, feeds: Feeds, eager: Outputs) -> None:
        """Not known here: the noise that the build recorded is used."""


def open_bundle_data(
    bundle: Bundle, data: str, config: BuildConfig, *, limit: int = CALLABLE_SAMPLES
) -> Dataset:
    """All samples of `data` under the names of the inputs of `bundle`; none is read yet.

    Args:
        data: what ``--data`` takes.
        config: how images of a folder become arrays.
        limit: samples that are taken from a callable.

    Raises:
        DataError: it cannot be opened, or does not fit the model's inputs.
    """
    inputs = bundle.manifest.inputs
    names = [spec.name for spec in inputs]
    taken = bundle.manifest.images
    uint8 = () if taken is None else taken.names
    shapes = [channels_first(s.shape) if s.name in uint8 else s.shape for s in inputs]
    images = config.images_for(shapes, uint8=bool(uint8))
    return open_data(data, images=images, input_names=names, limit=limit).bind(inputs)


def open_evaluation(bundle: Bundle, data: str, config: BuildConfig) -> Dataset:
    """Samples to judge on, drawn by the seed: folders of images are sorted by class."""
    dataset = open_bundle_data(bundle, data, config)
    drawn = np.random.default_rng(config.seed).permutation(len(dataset))
    evaluation = dataset.select(np.sort(drawn[: config.evaluation_samples]))
    check_data(evaluation, bundle.manifest.inputs)
    return evaluation


def plan_check(
    bundle: Bundle, reference: FloatReference, evaluation: Dataset, config: BuildConfig
) -> CheckPlan:
    """How engines are compared; labels are held against the outputs that the build chose."""
    batch = bundle.manifest.inputs[0].shape[0]
    plan = CheckPlan(batch if isinstance(batch, int) else None, row_bytes=_measure_row(bundle))
    recorded = {} if config.classes else _named_in_build(bundle)
    free = evaluation.labels is not None
    kept = [text for name, text in recorded.items() if free or name in evaluation.labels_of]
    named = [config.classes] if config.classes else kept
    try:
        chosen = choose_labelled(
            evaluation, evaluation, reference.outputs, reference, plan, named=named
        )
    except ConfigError as error:
        if config.classes:
            raise
        raise DataError(_describe_misfit(evaluation, kept)) from error
    return replace(plan, labelled=chosen.outputs, warnings=chosen.warnings)


def _measure_row(bundle: Bundle) -> int:
    """Bytes of the largest value that the float32 model makes of one sample."""
    manifest = bundle.manifest
    proto = onnx.load(bundle.path / manifest.engines[FALLBACK].file, load_external_data=False)
    axes = {name: s.best for spec in manifest.inputs for name, s in spec.ranges.items()}
    return count_row_bytes(proto, axes=axes)


def _named_in_build(bundle: Bundle) -> dict[str, str]:
    """The outputs that the build held labels against, each with the axis of its classes."""
    data = bundle.report()["data"]
    first = {"output": data["classes_of"], "axis": data.get("classes_axis")}
    found = data.get("labelled") or ([] if data["classes_of"] is None else [first])
    return {
        each["output"]: each["output"] + ("" if each["axis"] is None else f":{each['axis']}")
        for each in found
    }


def _describe_misfit(evaluation: Dataset, recorded: Sequence[str]) -> str:
    views = [view.labels for view in evaluation.view_labels().values()]
    sizes = [join_sizes(("N", *labels.shape[1:])) for labels in views if labels is not None]
    return (
        f"{evaluation.source}: the labels are {' and '.join(sizes)}, which does not fit "
        f"{' and '.join(recorded)}, the output that the build held labels against. Save labels of "
        "the form that the build had, or leave the labels out."
    )
