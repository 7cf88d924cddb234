"""What is held out of the data, and what is said where nothing can be."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny import FEATURES

from deploy.bundle.folder import Bundle, read_bundle
from deploy.commands.debug_samples import DebugSamples, open_samples
from deploy.config import BuildConfig
from deploy.inputs.data import open_data, split_data
from export.artifacts import SizeRange, TensorSpec
from export.errors import DataError
from quantize.calibration.calibrate import Again


def numbered(rows: int) -> np.ndarray:
    """[rows, FEATURES]; every sample holds its number."""
    column = np.arange(rows, dtype=np.float32)[:, None]
    return np.repeat(column, FEATURES, axis=1)


def save(folder: Path, **arrays: np.ndarray) -> BuildConfig:
    np.savez(folder / "data.npz", **arrays)
    return BuildConfig(data=str(folder / "data.npz"))


def parts(samples: DebugSamples) -> tuple[list[int], list[int]]:
    """Numbers of the samples that are calibrated on, and of those that are compared."""
    calibration, comparison = list(samples.calibration()), samples.comparison
    first, second = (
        [int(row[0]) for batch in batches for row in batch["x"]]
        for batches in (calibration, comparison)
    )
    return first, second


def fix_batch(bundle: Bundle, size: int) -> Bundle:
    inputs = (TensorSpec("x", (size, FEATURES), "float32"),)
    return replace(bundle, manifest=replace(bundle.manifest, inputs=inputs))


def test_the_parts_are_those_of_the_build(pristine: Path, tmp_path: Path) -> None:
    """Its report names 256 samples for calibration and 1,000 for evaluation."""
    bundle = read_bundle(pristine)
    counts = bundle.report()["data"]
    config = save(tmp_path, x=numbered(2000))
    calibration, compared = parts(open_samples(bundle, config, calibrates=True))
    built = split_data(
        open_data(str(config.data), images=config.images_for([]), input_names=["x"]),
        calibration_samples=counts["calibration_samples"],
        evaluation_samples=counts["evaluation_samples"],
        seed=0,
    )
    assert calibration == built.calibration.row_numbers(range(len(built.calibration))).tolist()
    assert set(compared) <= set(built.evaluation.row_numbers(range(len(built.evaluation))))
    assert len(compared) == 32


def test_samples_set_apart_are_the_ones_that_calibrate(pristine: Path, tmp_path: Path) -> None:
    config = save(tmp_path, x=numbered(40), calibration_x=100 + numbered(9))
    samples = open_samples(read_bundle(pristine), config, calibrates=True)
    calibration, compared = parts(samples)
    assert calibration == list(range(100, 109))
    assert max(compared) < 40
    assert samples.calibrated_on == "9 other samples"


@pytest.mark.parametrize(("batch", "rows"), [(None, 1), (20, 30)])
def test_where_none_can_be_held_out_the_same_are_compared_and_that_is_said(
    pristine: Path, tmp_path: Path, batch: int | None, rows: int
) -> None:
    bundle = read_bundle(pristine)
    bundle = bundle if batch is None else fix_batch(bundle, batch)
    samples = open_samples(bundle, save(tmp_path, x=numbered(rows)), calibrates=True)
    calibration, compared = parts(samples)
    assert calibration == compared
    assert len(compared) == (batch or rows)
    assert "too few to hold any out" in samples.calibrated_on


def test_a_fixed_batch_beyond_the_usual_number_of_samples_is_filled(
    pristine: Path, tmp_path: Path
) -> None:
    bundle = fix_batch(read_bundle(pristine), 48)
    config = save(tmp_path, x=numbered(100))
    calibration, compared = parts(open_samples(bundle, config, calibrates=True))
    assert len(compared) == 48
    assert len(calibration) == 48
    assert not set(calibration) & set(compared)
    with pytest.raises(DataError, match="47 samples do not fill one batch of 48"):
        open_samples(bundle, save(tmp_path, x=numbered(47)), calibrates=True)


def test_nothing_is_held_out_where_nothing_is_calibrated(pristine: Path, tmp_path: Path) -> None:
    config = save(tmp_path, x=numbered(20))
    _, compared = parts(open_samples(read_bundle(pristine), config, calibrates=False))
    assert compared == list(range(20))


def test_dynamic_axes_are_calibrated_at_other_sizes_too(pristine: Path, tmp_path: Path) -> None:
    bundle = read_bundle(pristine)
    ranges = {"width": SizeRange(2, FEATURES, 6)}
    inputs = (TensorSpec("x", ("batch", "width"), "float32", ranges),)
    bundle = replace(bundle, manifest=replace(bundle.manifest, inputs=inputs))
    samples = open_samples(bundle, save(tmp_path, x=numbered(40)), calibrates=True)
    again = {
        batch.feeds["x"].shape[1] if isinstance(batch, Again) else 0
        for batch in samples.all_sizes(bundle)
    }
    assert again == {0, 2, 3, 6}
