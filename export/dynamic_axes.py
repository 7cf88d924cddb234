"""Dynamic axes beside the batch in a capture, and why torch.export refuses one, in words.

Its message about a violated range has, for every axis, a line with the guard that the code of the
model needs, or with the constant that it makes of the size; both are read here.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch.export import Dim

from export.artifacts import SizeRange, TensorSpec

_FIXED = re.compile(r"specialized it to be a constant \((\d+)\)")
_MULTIPLE = r"^\s*{name} = (\d+)\*_"
_SUGGESTED = r"^\s*{name} = (.+)$"
_GUARD = re.compile(r"satisfy the generated guard (.+?)\.?$")
_LENGTH = 160


@dataclass(frozen=True)
class NamedAxis:
    """Where an axis was first named, and what it may be."""

    input: str
    axis: int
    sizes: SizeRange

    def __str__(self) -> str:
        return f"axis {self.axis} of input {self.input!r} ({str(self.sizes).replace(',', ':')})"


def make_dims(
    inputs: Sequence[TensorSpec],
) -> tuple[dict[str, dict[int, object]], dict[str, NamedAxis]]:
    """By input and axis the dimensions for torch.export, and the axes by their names.

    Axes of one name have one dimension, which makes them one size.
    """
    named: dict[str, NamedAxis] = {}
    dims: dict[str, dict[int, object]] = {}
    made: dict[str, object] = {}
    for spec in inputs:
        for axis, name in enumerate(spec.shape):
            if not isinstance(name, str) or name not in spec.ranges:
                continue
            sizes = spec.ranges[name]
            if name not in made:
                made[name] = Dim(name, min=sizes.least, max=sizes.most)
                named[name] = NamedAxis(spec.name, axis, sizes)
            dims.setdefault(spec.name, {})[axis] = made[name]
    return dims, named


def explain_axes(text: str, named: Mapping[str, NamedAxis]) -> str | None:
    """What torch.export's message `text` says of the axes `named`; None where that is nothing."""
    found = {name: _explain_axis(name, text) for name in named}
    reasons = {name: reason for name, reason in found.items() if reason is not None}
    if not reasons:
        return None
    listed = "; ".join(f"{named[name]} {reason}" for name, reason in reasons.items())
    return (
        f"The model cannot take sizes from a range here: {listed}. Give such an axis one size in "
        "--input, or change the model so that any size goes through it."
    )


def _explain_axis(name: str, text: str) -> str | None:
    """The reason that concerns the axis called `name`; None where the text has none."""
    word = re.compile(rf"\b{re.escape(name)}\b")
    lines = [line.strip() for line in text.splitlines() if word.search(line)]
    for line in text.splitlines():
        multiple = re.search(_MULTIPLE.format(name=re.escape(name)), line)
        if multiple:
            return f"must be a multiple of {multiple[1]}"
    for line in lines:
        fixed = _FIXED.search(line)
        if fixed:
            return f"is made a constant, {fixed[1]}, by the model's code"
    for line in text.splitlines():
        suggested = re.search(_SUGGESTED.format(name=re.escape(name)), line)
        if suggested and suggested[1].isdigit():
            return f"is made a constant, {suggested[1]}, by the model's code"
        if suggested and not suggested[1].startswith("Dim("):
            return f"must be the same as {suggested[1].strip()}"
    for line in lines:
        guard = _GUARD.search(line)
        if guard:
            return f"goes one way through the model only where {guard[1][:_LENGTH]}"
    return None
