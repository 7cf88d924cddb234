"""Dynamic axes beside the batch in a capture, and why torch.export refuses one, in words.

Its message about a violated range has, for every axis, a line with the guard that the code of the
model needs, or with the constant that it makes of the size; both are read here.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import sympy
from torch.export import Dim

from export.artifacts import SizeRange, TensorSpec
from export.errors import ExportError

_FIXED = re.compile(r"specialized it to be a constant \((\d+)\)")
_MULTIPLE = r"^\s*{name} = (\d+)\*_"
_BOUNDS = r"^\s*{name} = Dim\('{name}', min=(\d+), max=(\d+)\)"
_SAME = r"^\s*{name} = ([A-Za-z]\w*)$"
_GUARD = re.compile(r"satisfy the generated guard (.+?)\.?$")
_SIZE = re.compile(r"L\[[^]]*\]\.size\(\)\[\d+\]")
_LENGTH = 160
_SAFE = "axis_"
"""Before the name of an axis that torch would not take for a name."""


class RefusedAxesError(ExportError):
    """torch.export refuses the ranges of some axes.

    Attributes:
        multiples: of what number some of these axes must be multiples, by their names.
    """

    def __init__(self, message: str, multiples: Mapping[str, int]) -> None:
        super().__init__(message)
        self.multiples = dict(multiples)


class FixedBatchError(ExportError):
    """The model's code, at `place` where that is known, fits one size of the batch alone."""


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
                made[name] = _make_dim(_call_safely(name), sizes)
                named[name] = NamedAxis(spec.name, axis, sizes)
            dims.setdefault(spec.name, {})[axis] = made[name]
    return dims, named


def _make_dim(name: str, sizes: SizeRange) -> object:
    if sizes.step == 1:
        return Dim(name, min=sizes.least, max=sizes.most)
    steps = Dim(f"_{name}", min=sizes.least // sizes.step, max=sizes.most // sizes.step)
    return sizes.step * steps


def _call_safely(name: str) -> str:
    """A name that torch, which reads it as a formula, takes for a name: sympy has an ``S``."""
    try:
        plain = isinstance(sympy.sympify(name), sympy.Symbol)
    except (sympy.SympifyError, TypeError, AttributeError):
        plain = False
    return name if plain else f"{_SAFE}{name}"


def explain_axes(
    text: str,
    named: Mapping[str, NamedAxis],
    recurrent: Sequence[str] = (),
    places: Mapping[str, str] | None = None,
) -> RefusedAxesError | None:
    """What torch.export's message `text` says of the axes `named`; None where that is nothing.

    `recurrent` are the paths of recurrent networks, which torch.export runs for one number of
    steps: the likeliest reason for an axis that has one size, and one that its message lacks.
    `places` says by the name of an axis where the model's code decides by its size.
    """
    places = places or {}
    for name in named:
        if _call_safely(name) != name:
            text = re.sub(rf"\b(_?){_SAFE}{re.escape(name)}\b", rf"\g<1>{name}", text)
    found = {name: _explain_axis(name, text, places.get(name, "")) for name in named}
    reasons = {name: reason for name, reason in found.items() if reason is not None}
    if not reasons:
        return None
    listed = "; ".join(f"{named[name]} {reason}" for name, reason in reasons.items())
    multiples = {name: step for name in named if (step := _find_multiple(name, text))}
    return RefusedAxesError(
        f"The model cannot take sizes from a range here: {listed}. Give such an axis one size in "
        f"--input, or change the model so that any size goes through it.{_blame(recurrent, text)}",
        multiples,
    )


def _blame(recurrent: Sequence[str], text: str) -> str:
    """That recurrent networks fix how many steps they take, where one size is what is asked for."""
    if not recurrent or not re.search(r"== \d|constant", text):
        return ""
    return (
        f" torch.export runs recurrent networks ({', '.join(recurrent)}) for one number of steps: "
        "the axis that they run along has one size."
    )


def _find_multiple(name: str, text: str) -> int | None:
    found = re.search(_MULTIPLE.format(name=re.escape(name)), text, re.MULTILINE)
    return None if found is None else int(found[1])


def _explain_axis(name: str, text: str, place: str) -> str | None:
    """The reason that concerns the axis called `name`; None where the text has none."""
    lines = [line for line in text.splitlines() if re.search(rf"\b_?{re.escape(name)}\b", line)]

    def find(pattern: str | re.Pattern[str]) -> re.Match[str] | None:
        if isinstance(pattern, str):
            pattern = re.compile(pattern.format(name=re.escape(name)))
        return next((found for line in lines if (found := pattern.search(line))), None)

    if found := find(_MULTIPLE):
        return f"must be a multiple of {found[1]} (LEAST:BEST:MOST/{found[1]})"
    if found := find(_FIXED):
        return f"is made a constant, {found[1]}, by the model's code{place}"
    if found := find(_BOUNDS):
        return f"takes one way through the model's code{place} only from {found[1]} to {found[2]}"
    if found := find(_SAME):
        reason = f", because of the model's code{place}" if place else ""
        return f"must be of the same size as {found[1]}{reason}"
    if found := find(_GUARD):
        guard = _SIZE.sub("size", found[1])[:_LENGTH]
        return f"takes one way through the model's code{place} only where {guard}"
    return None
