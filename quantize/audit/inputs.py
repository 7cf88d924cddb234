"""The samples themselves: how many, how different, and whether both splits are of one kind."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from quantize.audit.finding import Finding, count_more
from quantize.audit.profile import InputProfile, InputStatistic

FEW_SAMPLES = 32
"""Below it the ranges depend on which samples they were."""

REPEATED_SHARE = 0.02
"""Of the samples; a few doubles are in many data sets."""

SCALE_FACTOR = 10.0
"""Between the spreads of calibration and evaluation, beyond which a unit differs, not the data."""

DRIFT = 0.5
"""Standard deviations between the means of a channel."""

SPREAD_FACTOR = 2.0
"""Between the standard deviations of a channel."""

SURE = 4.0
"""Standard errors that one channel of many samples must differ by."""

ENOUGH_FOR_DRIFT = 8
"""Samples of either split."""


@dataclass(frozen=True)
class Splits:
    """What the inputs of both splits look like.

    Attributes:
        calibration: of the samples that the ranges come from.
        evaluation: of samples that they do not come from.
    """

    calibration: InputProfile
    evaluation: InputProfile


def check_samples(splits: Splits) -> Iterator[Finding]:
    """Too few samples, constant ones, repeated ones, ones that both splits have."""
    count = splits.calibration.samples
    if count < FEW_SAMPLES:
        some = "one sample" if count == 1 else f"{count} samples"
        yield Finding(
            "few samples",
            "",
            f"The ranges of int8 come from {some}: what they did not show is clipped. Pass more "
            f"data, or raise --calibration-samples; {FEW_SAMPLES} are the least, 256 are usual.",
        )
    for name, profile in vars(splits).items():
        if profile.constant:
            yield Finding(
                "constant samples",
                "",
                f"{profile.constant} of the {profile.samples} {name} samples "
                f"hold{'s' * (profile.constant == 1)} one value throughout, as black images do. "
                "Take them out, or mend how they are read.",
            )
        if profile.repeated > REPEATED_SHARE * profile.samples:
            yield Finding(
                "repeated samples",
                "",
                f"{profile.repeated} of the {profile.samples} {name} samples "
                f"repeat{'s' * (profile.repeated == 1)} others, byte for byte, and "
                f"add{'s' * (profile.repeated == 1)} nothing. Take them out, or pass others.",
            )
    shared = splits.calibration.digests.keys() & splits.evaluation.digests.keys()
    if shared:
        yield Finding(
            "shared samples",
            "",
            f"{len(shared)} of the {splits.evaluation.samples} evaluation samples looked at "
            f"{'is a calibration sample' if len(shared) == 1 else 'are calibration samples'} as "
            "well, which does not show what held-out data would. Keep the two apart.",
        )


def check_inputs(splits: Splits) -> Iterator[Finding]:
    """Another unit, unscaled pixels, dead channels and drift, input by input."""
    for name, known in splits.calibration.inputs.items():
        other = splits.evaluation.inputs.get(name)
        if other is None or other.low.shape != known.low.shape:
            continue
        if not (known.is_finite and other.is_finite):
            continue  # what is infinite is named where the model's tensors are looked at
        if (known.low == known.high).all() and not _is_alike(known, other):
            yield Finding(
                "drift",
                name,
                f"Input {name!r} is the same in every calibration sample ({_span(known)}), and "
                f"{_span(other)} in evaluation: int8 was calibrated for nothing else. Calibrate "
                "on samples like those that the model will see.",
            )
            continue
        spreads = [float(np.sqrt(np.mean(item.deviation**2))) for item in (known, other)]
        low, high = sorted(spreads)
        if high > SCALE_FACTOR * low and low > 0:
            yield Finding(
                "input scale",
                name,
                f"Input {name!r} spans {_span(known)} in calibration and {_span(other)} in "
                f"evaluation, {high / low:.0f} times as much or as little. Scale both as in "
                "training (0 to 255 or 0 to 1, the same mean and deviation).",
            )
            continue
        if known.pixels:
            if known.high.max() <= 1:
                yield Finding(
                    "input scale",
                    name,
                    f"The images of input {name!r} hold nothing but 0 and 1: they were scaled to "
                    "0 to 1 before they became uint8. Save the pixels as they were decoded, 0 to "
                    "255.",
                )
        elif known.whole and known.low.min() >= 0 and 128 < known.high.max() <= 255:
            yield Finding(
                "input scale",
                name,
                f"Input {name!r} holds whole numbers from {_span(known)}, as pixels that were not "
                "scaled. If the model was trained on 0 to 1, or on normalized images, divide by "
                "255 and normalize.",
            )
        yield from _check_input_channels(name, splits)


def _check_input_channels(name: str, splits: Splits) -> Iterator[Finding]:
    known, other = splits.calibration.inputs[name], splits.evaluation.inputs[name]
    what = "column" if known.columns else "channel"
    dead = np.flatnonzero(known.low == known.high)
    if 0 < dead.size < known.low.size:
        more = count_more(dead.size - 1, what)
        yield Finding(
            "dead channels",
            name,
            f"{what.capitalize()} {dead[0]} of input {name!r} is {known.low[dead[0]]:g} in every "
            f"calibration sample{more}. Mend how the data is read, if it should not be.",
        )
    if min(known.samples, other.samples) < ENOUGH_FOR_DRIFT:
        return
    deviation = np.maximum(known.deviation, 1e-12 + 1e-6 * np.abs(known.mean))
    errors = _errors_beyond_chance(known.low.size, min(known.samples, other.samples))
    shift = np.abs(other.mean - known.mean)
    moved = shift > errors * np.hypot(known.error_of_mean, other.error_of_mean)
    change = np.abs(other.variance - known.variance)
    spread = change > errors * np.hypot(known.error_of_variance, other.error_of_variance)
    ratio = np.maximum(other.deviation, 1e-30) / deviation
    drifted = (moved & (shift > DRIFT * deviation)) | (
        spread & (np.abs(np.log(ratio)) > np.log(SPREAD_FACTOR))
    )
    drifted[dead] = False
    if drifted.any():
        more = count_more(int(drifted.sum()) - 1, what)
        worst = int(np.argmax(np.where(drifted, shift / deviation + np.abs(np.log(ratio)), -1)))
        yield Finding(
            "drift",
            name,
            f"{what.capitalize()} {worst} of input {name!r} has mean {known.mean[worst]:.3g} and "
            f"deviation {known.deviation[worst]:.3g} in calibration, {other.mean[worst]:.3g} and "
            f"{other.deviation[worst]:.3g} in evaluation{more}. Calibrate on samples like those "
            "that the model will see, prepared alike.",
        )


def _errors_beyond_chance(channels: int, samples: int) -> float:
    """Standard errors that the most different of `channels` must differ by, as `SURE` for one.

    Chance has as many tries as there are channels, and errors of few samples are themselves
    uncertain: Student's t for the normal deviate z, of which z^2 = d log(1 + t^2 / d) with d
    degrees of freedom.
    """
    square, freedom = SURE**2 + 2 * np.log(channels), samples - 1
    return float(np.sqrt(freedom * np.expm1(square / freedom)))


def _is_alike(known: InputStatistic, other: InputStatistic) -> bool:
    """Whether both are of the same values, but for rounding."""
    near = 1e-6 * np.abs(known.low) + 1e-12
    return bool(np.all(known.low - other.low <= near) and np.all(other.high - known.high <= near))


def _span(statistic: InputStatistic) -> str:
    low, high = statistic.low.min(), statistic.high.max()
    return f"{low:.3g}" if low == high else f"{low:.3g} to {high:.3g}"
