"""Dynamic axes other than the batch: their ranges carried on, and sizes to try engines at."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from export.artifacts import SizeRange, TensorSpec


def take_ranges(found: Sequence[TensorSpec], given: Sequence[TensorSpec]) -> tuple[TensorSpec, ...]:
    """`found`, as a file has it, with the names and ranges of dynamic axes that `given` knows."""
    known = {spec.name: spec for spec in given if spec.ranges}
    return tuple(
        _take_ranges(spec, known[spec.name]) if spec.name in known else spec for spec in found
    )


def _take_ranges(spec: TensorSpec, given: TensorSpec) -> TensorSpec:
    if len(spec.shape) != len(given.shape):
        return spec
    shape = tuple(
        name if isinstance(size, str) and name in given.ranges else size
        for size, name in zip(spec.shape, given.shape, strict=True)
    )
    ranges = {name: sizes for name, sizes in given.ranges.items() if name in shape}
    return replace(spec, shape=shape, ranges=ranges)


def probe_sizes(inputs: Sequence[TensorSpec]) -> tuple[dict[str, int], ...]:
    """Sizes of the dynamic axes at which an engine is tried: the least, the most, and odd ones.

    The odd ones lie below the best size on the first axis, above it on the second, and so on, so
    that two axes that were swapped differ. Empty where no axis has a range.
    """
    ranges = {name: sizes for spec in inputs for name, sizes in spec.ranges.items()}
    if not ranges:
        return ()
    names = tuple(ranges)
    probes = (
        tuple(sizes.least for sizes in ranges.values()),
        tuple(sizes.most for sizes in ranges.values()),
        tuple(_find_odd(s, above=index % 2 == 1) for index, s in enumerate(ranges.values())),
    )
    return tuple(dict(zip(names, probe, strict=True)) for probe in dict.fromkeys(probes))


def find_stray_sizes(inputs: Sequence[TensorSpec], multiples: Mapping[str, int]) -> dict[str, int]:
    """For axes by name a size of their range, near the best, that is no multiple of a number.

    An axis all of whose sizes are multiples is left out.
    """
    ranges = {name: sizes for spec in inputs for name, sizes in spec.ranges.items()}
    found = {}
    for name, multiple in multiples.items():
        sizes = ranges[name]
        near = (sizes.best + sign * n * sizes.step for n in range(1, multiple) for sign in (1, -1))
        stray = next((size for size in near if size in sizes and size % multiple), None)
        if stray is not None:
            found[name] = stray
    return found


def describe_sizes(sizes: Mapping[str, int]) -> str:
    """``x_2=177, x_3=301``, for messages."""
    return ", ".join(f"{name}={size}" for name, size in sizes.items())


def _find_odd(sizes: SizeRange, *, above: bool) -> int:
    """An odd multiple of the step halfway to one end of the range, if the range has one there."""
    step, middle = sizes.step, (sizes.best + (sizes.most if above else sizes.least)) // 2
    steps = middle // step
    near = (steps, steps + 1, steps - 1)
    return next((n * step for n in near if n % 2 and n * step in sizes), steps * step)
