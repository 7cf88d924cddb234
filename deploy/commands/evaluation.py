"""The samples that engines of a bundle are judged on once more, and how its labels are read."""

from dataclasses import replace

import numpy as np
import onnx

from deploy.bundle.folder import FALLBACK, Bundle
from deploy.config import BuildConfig
from deploy.engines.base import Feeds
from deploy.engines.process import EngineProcess
from deploy.inputs.data import CALLABLE_SAMPLES, Dataset, check_data, open_data
from deploy.judging.checking import CheckPlan
from deploy.judging.label_choice import choose_class_output
from deploy.judging.labels import find_readings, join_sizes
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
    """How engines are compared; the labels are held against the output that the build chose."""
    batch = bundle.manifest.inputs[0].shape[0]
    plan = CheckPlan(batch if isinstance(batch, int) else None, row_bytes=_measure_row(bundle))
    recorded = None if config.classes else _named_in_build(bundle)
    try:
        named = config.classes or recorded
        found = find_readings(evaluation, reference.outputs, plan, named=named)
    except ConfigError as error:
        if recorded is None:
            raise
        raise DataError(_describe_misfit(evaluation, recorded)) from error
    chosen = choose_class_output(found, reference, evaluation, plan)
    return replace(plan, classes_of=chosen.name, label_form=chosen.form, warnings=chosen.warnings)


def _measure_row(bundle: Bundle) -> int:
    """Bytes of the largest value that the float32 model makes of one sample."""
    manifest = bundle.manifest
    proto = onnx.load(bundle.path / manifest.engines[FALLBACK].file, load_external_data=False)
    axes = {name: s.best for spec in manifest.inputs for name, s in spec.ranges.items()}
    return count_row_bytes(proto, axes=axes)


def _named_in_build(bundle: Bundle) -> str | None:
    """The output, and the axis of its classes, that the build held labels against."""
    data = bundle.report()["data"]
    name, axis = data["classes_of"], data.get("classes_axis")
    return name if name is None or axis is None else f"{name}:{axis}"


def _describe_misfit(evaluation: Dataset, recorded: str) -> str:
    assert evaluation.labels is not None
    return (
        f"{evaluation.source}: the labels are {join_sizes(('N', *evaluation.labels.shape[1:]))}, "
        f"which does not fit {recorded}, the output that the build held labels against. Save "
        "labels of the form that the build had, or leave the labels out."
    )
