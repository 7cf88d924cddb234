"""Where a linear, shift-invariant map reads, axis by axis: integers only, no tensors.

On one spatial axis, output i reads the inputs

    stride * i + origin + step * k,   k = 0 .. taps - 1

and there are ``floor((size + margin) / stride) + 1`` outputs. A convolution of kernel K, padding p
and dilation d has origin -p, step d, taps K and margin 2p - d(K - 1) - 1. What is read outside
0 .. size - 1 is zero.
"""

import math
from dataclasses import dataclass, replace


class Inexact(ValueError):
    """Two maps cannot be joined into one without changing the function; the message says why."""


@dataclass(frozen=True)
class Axis:
    """One spatial axis of a map.

    Attributes:
        size: of the input; None where it is not known before run time.
        stride: inputs from one output to the next.
        origin: the first input that output 0 reads; negative in the padding.
        step: inputs from one tap to the next; 1 where there is one tap.
        taps: how many.
        margin: decides the number of outputs, see above.
    """

    size: int | None
    stride: int = 1
    origin: int = 0
    step: int = 1
    taps: int = 1
    margin: int = -1

    @classmethod
    def window(
        cls,
        size: int | None,
        kernel: int,
        *,
        stride: int = 1,
        padding: tuple[int, int] = (0, 0),
        dilation: int = 1,
    ) -> "Axis":
        """The axis of a convolution or pool; `padding` is before and after."""
        before, after = padding
        margin = before + after - dilation * (kernel - 1) - 1
        return cls(size, stride, -before, dilation if kernel > 1 else 1, kernel, margin)

    @property
    def span(self) -> int:
        """Inputs from the first tap to the last."""
        return self.step * (self.taps - 1)

    @property
    def outputs(self) -> int | None:
        """How many outputs there are; None where the size is not known."""
        return None if self.size is None else (self.size + self.margin) // self.stride + 1

    def padding_after(self) -> tuple[int, int]:
        """The least and the greatest padding after the input that give the same outputs.

        With a known size, any that leaves the number of outputs as it is.
        """
        if self.size is None or self.outputs is None:
            exact = self.margin + 1 + self.span + self.origin
            return exact, exact
        least = self.stride * (self.outputs - 1) + self.origin + self.span + 1 - self.size
        return least, least + self.stride - 1


def compose_axes(first: Axis, second: Axis) -> Axis:
    """The axis of `second` after `first`: offsets are ``first.stride * d2 + d1``."""
    steps = [first.stride * second.step] * (second.taps > 1) + [first.step] * (first.taps > 1)
    step = math.gcd(*steps) or 1
    span = first.stride * second.span + first.span
    return Axis(
        size=first.size,
        stride=first.stride * second.stride,
        origin=first.stride * second.origin + first.origin,
        step=step,
        taps=span // step + 1,
        margin=first.margin + first.stride * (1 + second.margin),
    )


def unite_axes(one: Axis, other: Axis) -> Axis:
    """The least axis that holds the taps of both.

    Raises:
        Inexact: their outputs are not at the same places.
    """
    if one.stride != other.stride:
        raise Inexact(f"the branches have different strides ({one.stride} and {other.stride})")
    if one.outputs != other.outputs or (one.outputs is None and one.margin != other.margin):
        raise Inexact(f"the branches have different output sizes ({one.outputs}, {other.outputs})")
    steps = [axis.step for axis in (one, other) if axis.taps > 1]
    step = math.gcd(*steps, abs(one.origin - other.origin)) or 1
    origin = min(one.origin, other.origin)
    end = max(one.origin + one.span, other.origin + other.span)
    return replace(one, origin=origin, step=step, taps=(end - origin) // step + 1)


def place_taps(axis: Axis, within: Axis) -> slice:
    """Where the taps of `axis` stand among those of `within`."""
    return shift_taps(axis, axis.origin - within.origin, within)


def shift_taps(axis: Axis, offset: int, within: Axis) -> slice:
    """Where the taps of `axis` stand among those of `within`, the first of them at `offset`."""
    start = offset // within.step
    every = axis.step // within.step if axis.taps > 1 else 1
    return slice(start, start + axis.span // within.step + 1, every)


def reads_border(first: Axis, second: Axis) -> bool:
    """Whether `second` reads beyond the outputs of `first`, where it sees its own zeros."""
    if first.outputs is None:
        after = second.margin + 1 + second.origin + second.span
        return second.origin < 0 or after > 0
    return bool(_positions_outside(first, second))


def border_is_blank(first: Axis, second: Axis) -> bool:
    """Whether `first`, continued to where `second` reads beyond it, would read only padding.

    Only then does the composed map see there what the sequence sees: zero, or the bias of `first`.
    """
    if first.size is None or first.outputs is None:
        left = second.origin >= 0 or first.origin + first.span < first.stride
        after = second.margin + 1 + second.origin + second.span
        return left and (after <= 0 or first.margin + 1 + first.origin >= 0)
    return not any(
        0 <= first.stride * position + first.origin + first.step * tap < first.size
        for position in _positions_outside(first, second)
        for tap in range(first.taps)
    )


def _positions_outside(first: Axis, second: Axis) -> set[int]:
    """Positions beyond the outputs of `first` that `second` reads."""
    inner, outputs = first.outputs or 0, replace(second, size=first.outputs).outputs or 0
    read = {
        second.stride * output + second.origin + second.step * tap
        for output in range(outputs)
        for tap in range(second.taps)
    }
    return {position for position in read if not 0 <= position < inner}
