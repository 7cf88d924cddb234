"""The tensors of the model: do the ranges hold for samples that they do not come from."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from quantize.audit.finding import Finding, count_more, count_used
from quantize.calibration.ranges import Ranges
from quantize.observers.statistic import Span, TensorStatistic

SATURATED_SHARE = 0.01
"""Of the evaluation values of a tensor outside its range, beyond what the observer clipped."""

UNUSED_FACTOR = 4.0
"""Between the range of a tensor and what evaluation fills of it."""

GROWTH = 0.1
"""Of a range from half of the samples to all of them."""

GROWING_SHARE = 0.25
"""Of the ranges: the extremes of some grow for long, whatever the data."""

DEAD_SHARE = 0.5
"""Of the channels of a tensor."""


@dataclass(frozen=True)
class Observed:
    """Both sides of the comparison.

    Attributes:
        ranges: of the calibration.
        evaluation: what evaluation saw of the tensors that may be quantized; may be empty.
        label: what to call a tensor.
    """

    ranges: Ranges
    evaluation: Mapping[str, TensorStatistic]
    label: Callable[[str], str]


def check_tensors(observed: Observed) -> Iterator[Finding]:
    """Everything about tensors, the gravest first."""
    yield from check_saturation(observed)
    yield from check_channels(observed)
    yield from check_use(observed)
    yield from check_convergence(observed)


def check_infinite(where: Sequence[str]) -> Iterator[Finding]:
    """Tensors, by their labels in graph order, that evaluation makes infinite or NaN."""
    if where:
        yield Finding(
            "saturation",
            where[0],
            f"Some evaluation sample makes {where[0]!r} infinite or NaN"
            f"{count_more(len(where) - 1, 'tensor')}, which no calibration sample does: int8 has "
            "no such value and clips it. Take the sample out, or pass samples like it for "
            "calibration.",
        )


def check_saturation(observed: Observed) -> Iterator[Finding]:
    """Evaluation values outside the calibrated ranges."""
    ranges = observed.ranges
    shares = {
        name: seen.histogram.share_outside(*ranges.ranges[name])
        for name, seen in observed.evaluation.items()
    }
    excess = {name: share - ranges.clipped.get(name, 0) for name, share in shares.items()}
    beyond = [name for name in excess if excess[name] > SATURATED_SHARE]
    if not beyond:
        return
    worst = max(beyond, key=excess.__getitem__)
    where, reach = observed.label(worst), observed.evaluation[worst].extent
    yield Finding(
        "saturation",
        where,
        f"{shares[worst]:.0%} of the evaluation values of {where!r} lie outside the calibrated "
        f"range {_span(ranges.ranges[worst])} (they span {_span(reach)})"
        f"{count_more(len(beyond) - 1, 'tensor')}: int8 clips them. Pass more samples with "
        f"--calibration-samples ({count_used(ranges.samples)}), or samples like these.",
    )


def check_channels(observed: Observed) -> Iterator[Finding]:
    """Channels that calibration never saw awake."""
    asleep: dict[str, tuple[int, int]] = {}
    dead: dict[str, tuple[int, int]] = {}
    for name in observed.ranges.quantizable:
        known, seen = observed.ranges.channels.get(name), observed.evaluation.get(name)
        if known is None:
            continue
        zero = (known.low == 0) & (known.high == 0)
        other = seen.channels if seen else None
        if other is not None and other.low.shape == zero.shape:
            awake = int((zero & ((other.low != 0) | (other.high != 0))).sum())
            if awake:
                asleep[name] = awake, zero.size
        if zero.mean() > DEAD_SHARE:
            dead[name] = int(zero.sum()), zero.size
    for found, words in ((asleep, _ASLEEP), (dead, _DEAD)):
        if found:
            worst = max(found, key=lambda name: found[name][0] / found[name][1])
            where = observed.label(worst)
            more = count_more(len(found) - 1, "tensor")
            some, size = found[worst]
            are = "is" if some == 1 else "are"
            words = words.format(some=some, size=size, where=where, more=more, are=are)
            yield Finding("dead channels", where, words)


_ASLEEP = (
    "{some} of the {size} channels of {where!r} {are} 0 in all calibration samples and not in "
    "evaluation{more}: the samples do not show all that the model can see. Pass more, and more "
    "varied, samples."
)
_DEAD = (
    "{some} of the {size} channels of {where!r} {are} 0 in all calibration samples{more}. Check "
    "that the inputs are prepared as in training; if they are, these channels do nothing."
)


def check_use(observed: Observed) -> Iterator[Finding]:
    """Ranges of which evaluation uses little: an outlier in calibration, or other data."""
    ranges = observed.ranges.ranges
    factors = {
        name: _width(ranges[name]) / _width(seen.extent)
        for name, seen in observed.evaluation.items()
        if _width(seen.extent) > 0
    }
    wide = [name for name in factors if factors[name] > UNUSED_FACTOR]
    if not wide:
        return
    worst = max(wide, key=factors.__getitem__)
    where = observed.label(worst)
    yield Finding(
        "drift",
        where,
        f"The calibrated range of {where!r}, {_span(ranges[worst])}, is {factors[worst]:.0f} times "
        f"as wide as what evaluation fills of it ({_span(observed.evaluation[worst].extent)})"
        f"{count_more(len(wide) - 1, 'tensor')}: int8 is coarser than it need be. Look for an "
        "outlier in the calibration data, or use --observer auto.",
    )


def check_convergence(observed: Observed) -> Iterator[Finding]:
    """Ranges that have not settled; what other sizes add to them says nothing of the samples."""
    ranges = observed.ranges
    after = ranges.settled or ranges.ranges
    growth = {
        name: _width(after[name]) / _width(before) - 1
        for name, before in ranges.earlier.items()
        if _width(before) > 0
    }
    growing = [name for name in growth if growth[name] > GROWTH]
    if not growing or len(growing) < GROWING_SHARE * len(growth):
        return
    worst = max(growing, key=growth.__getitem__)
    where = observed.label(worst)
    yield Finding(
        "convergence",
        where,
        f"The range of {where!r} grew by {growth[worst]:.0%} from the first "
        f"{ranges.earlier_samples} to all {ranges.samples} calibration samples, and {len(growing)} "
        f"of {len(growth)} ranges by more than {GROWTH:.0%}: they have not settled. Pass more "
        "samples with --calibration-samples.",
    )


def _width(span: Span) -> float:
    """Of the range that is quantized, which holds 0."""
    return max(span[1], 0.0) - min(span[0], 0.0)


def _span(span: Span) -> str:
    return f"{span[0]:.3g} to {span[1]:.3g}"
