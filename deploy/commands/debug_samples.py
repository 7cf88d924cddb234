"""What `deploy debug precision` calibrates int8 on, and which samples it compares outputs on."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from deploy.bundle.folder import Bundle
from deploy.commands.evaluation import open_bundle_data
from deploy.config import BuildConfig
from deploy.engines.base import Feeds
from deploy.inputs.data import Dataset, Split, check_data, split_data
from deploy.judging.size_checks import batches_of_all_sizes
from export.errors import DataError
from quantize.calibration.calibrate import Again

_SAMPLES = 32
"""That outputs are compared on; every mix runs them all."""
_BATCH = 8
_SAME = "these very samples"


@dataclass(frozen=True)
class DebugSamples:
    """Samples of a model's inputs in batches.

    Attributes:
        comparison: what the outputs are compared on.
        words: what that is.
        calibration: what int8 is calibrated on, from the start at every call.
        calibrated_on: what that is, in words.
        real: whether they are samples of what the model sees; else they are made up.
    """

    comparison: list[Feeds]
    words: str
    calibration: Callable[[], Iterator[Feeds]]
    calibrated_on: str
    real: bool

    def all_sizes(self, bundle: Bundle) -> Iterator[Feeds | Again]:
        """`calibration`, at other sizes of the dynamic axes too, as a build calibrates."""
        return batches_of_all_sizes(self.calibration, bundle.manifest.inputs)


def open_samples(bundle: Bundle, config: BuildConfig, *, calibrates: bool) -> DebugSamples:
    """The samples of ``--data``, else the golden ones of the bundle.

    Where int8 is to be calibrated, the data are split as the build splits its own, by as many
    samples as its report names: on the same data and seed these are the build's own two parts.

    Args:
        calibrates: whether samples are to be held out; else all may be compared on.

    Raises:
        DataError: they cannot be read, do not fit the model, or fill no batch.
        BundleError: the report or the golden samples of `bundle` cannot be read.
    """
    if config.data is None:
        golden = bundle.golden().inputs
        words = f"the {_rows(golden)} golden samples of the bundle, which are made up"
        return DebugSamples([golden], words, lambda: iter([golden]), _SAME, real=False)
    split = _open_split(bundle, config) if calibrates else None
    if split is None:
        limit = config.evaluation_samples
        dataset = open_bundle_data(bundle, config.data, config, limit=limit)
        chosen = _spread(dataset, config, _size(bundle))
        return _make(bundle, chosen, chosen, f"{_SAME}, too few to hold any out,")
    compared = _spread(split.evaluation, config, _size(bundle))
    return _make(bundle, split.calibration, compared, f"{len(split.calibration)} other samples")


def _open_split(bundle: Bundle, config: BuildConfig) -> Split | None:
    """The data in two parts that share no sample; None where one would not fill a batch."""
    built = bundle.report()["data"]
    calibration, evaluation = config.calibration_samples, config.evaluation_samples
    if built["kind"] != "synthetic":
        calibration, evaluation = built["calibration_samples"], built["evaluation_samples"]
    dataset = open_bundle_data(bundle, str(config.data), config, limit=calibration + evaluation)
    if dataset.calibration is None and len(dataset) < 2:
        return None
    least = _size(bundle) or 1
    for asked in ((calibration, evaluation), (least, len(dataset) - least)):
        split = split_data(
            dataset, calibration_samples=asked[0], evaluation_samples=asked[1], seed=config.seed
        )
        if min(len(split.calibration), len(split.evaluation)) >= least:
            return split
    return None


def _make(
    bundle: Bundle, calibration: Dataset, compared: Dataset, calibrated_on: str
) -> DebugSamples:
    for part in {id(part): part for part in (calibration, compared)}.values():
        check_data(part, bundle.manifest.inputs)
    size = _size(bundle)
    full = list(_batches(compared, size))
    if not full:
        raise DataError(
            f"{compared.source}: {len(compared)} samples do not fill one batch of {size}, the only "
            "size that the model takes. Pass more data."
        )
    return DebugSamples(
        full,
        f"{sum(map(_rows, full))} samples of {compared.source}",
        lambda: _batches(calibration, size),
        calibrated_on,
        real=True,
    )


def _spread(dataset: Dataset, config: BuildConfig, size: int | None) -> Dataset:
    """A few samples from all of it, since folders of images are sorted by class."""
    count = min(max(min(_SAMPLES, config.evaluation_samples), size or 1), len(dataset))
    return dataset.select(np.linspace(0, len(dataset) - 1, count).round().astype(np.int64))


def _batches(dataset: Dataset, size: int | None) -> Iterator[Feeds]:
    """Those of a fixed `size` are always full."""
    for batch in dataset.batches(size or _BATCH):
        if size in (None, _rows(batch)):
            yield batch


def _size(bundle: Bundle) -> int | None:
    """The only batch size that the model takes; None: any."""
    size = bundle.manifest.inputs[0].shape[0]
    return size if isinstance(size, int) else None


def _rows(batch: Feeds) -> int:
    return len(next(iter(batch.values())))
