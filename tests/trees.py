"""Random networks of branches, sequences and scales, labelled by the mathematics, not by a tool.

A tree is a frozen description; `build` makes the float64 network of it. Along every axis a linear
shift-invariant map has a stride s and taps δ: output p reads the input at ``s·p + δ``, and zero
where that lies outside. A sequence ``g(f(x))`` is such a map if, wherever g reads outside of f's
output and so gets zero, one convolution would get zero too: f has no bias, and at that position
all its taps lie outside of x. A sum is one if strides and sizes are equal.

`judge` counts this out position by position, at the sizes of the tree, once from the input onwards
and once from the inside out. A tree is mergeable if both say so. It is refused if neither does and
its impulse response is no convolution's. What lies between, such as a bias that happens to be zero
in the one channel that is read, is given to nobody.
"""

import functools
import itertools
import math
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from hypothesis import assume
from hypothesis import strategies as st
from hypothesis.vendor.pretty import RepresentationPrinter
from nets import randomize_norms
from torch import Tensor, nn
from torch.nn import functional as F

Shape = tuple[int, tuple[int, ...]]
"""Channels and spatial sizes."""
Axes = tuple[int, ...]
"""One number for each spatial axis."""

BIAS = "a bias before a border of zeros"
BORDER = "taps that reach in from the border between"
STRIDE = "different strides"
BROADCAST = "different sizes, broadcast"
NONLINEAR = "a non-linearity between"
TRAINING = "batch norm in training mode"
UNTRACKED = "batch norm without running statistics"
GATED = "a data-dependent scale"
POOL = "an average pool that leaves out its padding"
MODE = "a padding mode other than zeros"
SPATIAL = "a constant that varies over space"
SHARED = "a value used elsewhere"


class Node:
    """A description whose repr leaves out defaults and can be pasted into a test."""

    def _shown(self) -> dict[str, Any]:
        values = ((field, getattr(self, field.name)) for field in fields(self))
        return {field.name: value for field, value in values if value != field.default}

    def __repr__(self) -> str:
        shown = (f"{name}={value!r}" for name, value in self._shown().items())
        return f"{type(self).__name__}({', '.join(shown)})"

    def _repr_pretty_(self, printer: RepresentationPrinter, cycle: bool) -> None:
        """The same, over several lines, as hypothesis reports it."""
        with printer.group(4, f"{type(self).__name__}(", ")"):
            for index, (name, value) in enumerate(self._shown().items()):
                printer.text("," if index else "")
                printer.breakable(" " if index else "")
                printer.text(f"{name}=")
                printer.pretty(value)


@dataclass(frozen=True, repr=False)
class Conv(Node):
    """A convolution; without axes a linear layer.

    A stride, padding or dilation left out is 1, 0 or 1; `same` replaces the padding.
    """

    outputs: int
    kernel: Axes = ()
    stride: Axes = ()
    padding: Axes = ()
    dilation: Axes = ()
    groups: int = 1
    bias: bool = False
    same: bool = False
    mode: str = "zeros"


@dataclass(frozen=True, repr=False)
class Norm(Node):
    """Batch normalization."""

    affine: bool = True
    training: bool = False
    tracked: bool = True


@dataclass(frozen=True, repr=False)
class Scale(Node):
    """A parameter times the value: one for each channel, or for each position too."""

    first: bool = False
    batched: bool = False
    spatial: bool = False


@dataclass(frozen=True, repr=False)
class Shift(Node):
    """A parameter added to the value, or the number `value`."""

    value: float | None = None
    spatial: bool = False


@dataclass(frozen=True, repr=False)
class Times(Node):
    """The value times or divided by a number."""

    value: float
    divide: bool = False


@dataclass(frozen=True, repr=False)
class Negate(Node):
    """The value with the other sign."""


@dataclass(frozen=True, repr=False)
class Identity(Node):
    """The value."""


@dataclass(frozen=True, repr=False)
class Pool(Node):
    """An average pool; a stride or padding left out is 1 or 0."""

    kernel: Axes
    stride: Axes = ()
    padding: Axes = ()
    count_padding: bool = True


@dataclass(frozen=True, repr=False)
class Pad(Node):
    """Zeros around the value."""

    before: Axes
    after: Axes


@dataclass(frozen=True, repr=False)
class Slice(Node):
    """Channels from `start` up to `stop`."""

    start: int
    stop: int


@dataclass(frozen=True, repr=False)
class Activation(Node):
    """A non-linearity by its name in torch."""

    name: str


@dataclass(frozen=True, repr=False)
class Excite(Node):
    """The value times the sigmoid of its own mean."""


@dataclass(frozen=True, repr=False)
class Sequence(Node):
    """One after the other."""

    parts: tuple["Tree", ...]


@dataclass(frozen=True, repr=False)
class Sum(Node):
    """The terms of one value, added or, where the sign is -1, subtracted; the first is added."""

    terms: tuple["Tree", ...]
    signs: tuple[int, ...]


@dataclass(frozen=True, repr=False)
class Concat(Node):
    """The channels of all terms of one value."""

    terms: tuple["Tree", ...]


@dataclass(frozen=True, repr=False)
class Split(Node):
    """The channels cut into `sizes`, a term for each piece, concatenated or added."""

    sizes: tuple[int, ...]
    terms: tuple["Tree", ...]
    added: bool = False


@dataclass(frozen=True, repr=False)
class Tapped(Node):
    """``rest(first(x))`` and, as a second output, ``first(x)``; only at the root."""

    first: "Tree"
    rest: "Tree"


Leaf = (
    Conv | Norm | Scale | Shift | Times | Negate | Identity | Pool | Pad | Slice | Activation
) | Excite
Tree = Leaf | Sequence | Sum | Concat | Split | Tapped


@dataclass(frozen=True, repr=False)
class Case(Node):
    """A tree on an input of `shape`, with its label; `cause` is why it is refused."""

    shape: Shape
    tree: Tree
    mergeable: bool
    cause: str = ""

    def inputs(self, batch: int) -> Tensor:
        """A seeded batch."""
        generator = torch.Generator().manual_seed(batch)
        channels, sizes = self.shape
        return torch.randn(batch, channels, *sizes, dtype=torch.float64, generator=generator)


# What a tree computes


@dataclass(frozen=True)
class Window:
    """How a layer reads one axis."""

    kernel: int = 1
    stride: int = 1
    before: int = 0
    after: int = 0
    dilation: int = 1

    def outputs(self, size: int) -> int:
        """Output positions on an axis of `size`."""
        span = self.dilation * (self.kernel - 1)
        return (size + self.before + self.after - span - 1) // self.stride + 1

    def taps(self) -> frozenset[int]:
        """Offsets of what output 0 reads."""
        return frozenset(self.dilation * k - self.before for k in range(self.kernel))


def windows_of(leaf: Tree, axes: int) -> tuple[Window, ...]:
    """The window of `leaf` on each axis."""
    match leaf:
        case Conv(same=True):
            pairs = zip(leaf.dilation or (1,) * axes, leaf.kernel, strict=True)
            totals = [dilation * (kernel - 1) for dilation, kernel in pairs]
            borders = [(total // 2, total - total // 2) for total in totals]
        case Conv() | Pool():
            borders = [(p, p) for p in leaf.padding or (0,) * axes]
        case Pad():
            pairs = zip(leaf.before, leaf.after, strict=True)
            return tuple(Window(before=b, after=a) for b, a in pairs)
        case _:
            return (Window(),) * axes
    strides = leaf.stride or (1,) * axes
    dilations = (isinstance(leaf, Conv) and leaf.dilation) or (1,) * axes
    return tuple(
        Window(kernel, stride, *border, dilation)
        for kernel, stride, border, dilation in zip(
            leaf.kernel, strides, borders, dilations, strict=True
        )
    )


def shape_of(tree: Tree, shape: Shape) -> Shape:
    """Shape of the output for an input of `shape`."""
    channels, sizes = shape
    match tree:
        case Sequence():
            return functools.reduce(lambda value, part: shape_of(part, value), tree.parts, shape)
        case Tapped():
            return shape_of(tree.rest, shape_of(tree.first, shape))
        case Sum() | Concat() | Split():
            shapes = [shape_of(*pair) for pair in _terms_of(tree, shape)]
            counts = [count for count, _ in shapes]
            wide = isinstance(tree, Concat) or (isinstance(tree, Split) and not tree.added)
            axes = zip(*(sizes for _, sizes in shapes), strict=True)
            return sum(counts) if wide else max(counts), tuple(max(axis) for axis in axes)
        case Conv():
            channels = tree.outputs
        case Slice():
            channels = tree.stop - tree.start
    windows = windows_of(tree, len(sizes))
    return channels, tuple(w.outputs(n) for w, n in zip(windows, sizes, strict=True))


def _terms_of(tree: Sum | Concat | Split, shape: Shape) -> Iterator[tuple[Tree, Shape]]:
    """The terms, each with the shape of its input."""
    for index, term in enumerate(tree.terms):
        yield term, (tree.sizes[index], shape[1]) if isinstance(tree, Split) else shape


def walk(tree: Tree) -> Iterator[Tree]:
    """`tree` and all trees in it."""
    yield tree
    match tree:
        case Sequence():
            children = tree.parts
        case Tapped():
            children = (tree.first, tree.rest)
        case Sum() | Concat() | Split():
            children = tree.terms
        case _:
            children = ()
    for child in children:
        yield from walk(child)


def count_operations(tree: Tree) -> int:
    """Operations that the network runs."""
    cost = {Sequence: 0, Tapped: 0, Identity: 0, Split: 2}
    return sum(
        len(node.terms) - 1 if isinstance(node, Sum) else cost.get(type(node), 1)
        for node in walk(tree)
    )


def has_layer(tree: Tree) -> bool:
    """Whether a convolution, linear layer or pool is in it."""
    return any(isinstance(node, Conv | Pool) for node in walk(tree))


# The network of a tree


class Apply(nn.Module):
    """Calls `function` on the value and, if there is one, a parameter."""

    def __init__(self, function: Callable[..., Tensor], parameter: Tensor | None = None) -> None:
        super().__init__()
        self._function = function
        self.weight = None if parameter is None else nn.Parameter(parameter)

    def forward(self, x: Tensor) -> Tensor:
        return self._function(x) if self.weight is None else self._function(x, self.weight)


class Join(nn.Module):
    """Calls each branch on the value, or on its piece of the channels, and joins the results."""

    def __init__(
        self,
        branches: list[nn.Module],
        join: Callable[[list[Tensor]], Tensor],
        sizes: tuple[int, ...] = (),
    ) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)
        self._join, self._sizes = join, sizes

    def forward(self, x: Tensor) -> Tensor:
        pieces = torch.split(x, self._sizes, 1) if self._sizes else (x,) * len(self.branches)
        return self._join([b(piece) for b, piece in zip(self.branches, pieces, strict=True)])


class Tap(nn.Module):
    """Returns the value between as well."""

    def __init__(self, first: nn.Module, rest: nn.Module) -> None:
        super().__init__()
        self.first, self.rest = first, rest

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        between = self.first(x)
        return self.rest(between), between


def build(tree: Tree, shape: Shape) -> nn.Module:
    """The float64 network in eval mode; its weights depend on the tree alone."""
    seed = zlib.crc32(repr(tree).encode())
    training: list[nn.Module] = []
    net = _build(tree, shape, torch.Generator().manual_seed(seed), training)
    randomize_norms(net.double().eval(), seed)
    for norm in training:
        norm.train()
    return net


def _build(tree: Tree, shape: Shape, rng: torch.Generator, training: list[nn.Module]) -> nn.Module:
    channels, sizes = shape
    match tree:
        case Sequence():
            parts = []
            for part in tree.parts:
                parts.append(_build(part, shape, rng, training))
                shape = shape_of(part, shape)
            return nn.Sequential(*parts)
        case Tapped():
            between = shape_of(tree.first, shape)
            first = _build(tree.first, shape, rng, training)
            return Tap(first, _build(tree.rest, between, rng, training))
        case Sum() | Concat() | Split():
            branches = [_build(*pair, rng, training) for pair in _terms_of(tree, shape)]
            if isinstance(tree, Sum):
                return Join(branches, functools.partial(_add, signs=tree.signs))
            added = isinstance(tree, Split) and tree.added
            join = functools.partial(_add, signs=(1,) * len(branches)) if added else _concatenate
            return Join(branches, join, tree.sizes if isinstance(tree, Split) else ())
        case Conv():
            return _build_layer(tree, channels, rng)
        case Norm():
            kind = (nn.BatchNorm1d, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[len(sizes)]
            norm = kind(channels, affine=tree.affine, track_running_stats=tree.tracked)
            training += [norm] if tree.training else []
            return norm
        case Pool():
            pools = {1: nn.AvgPool1d, 2: nn.AvgPool2d, 3: nn.AvgPool3d}
            return pools[len(sizes)](
                tree.kernel,
                tree.stride or 1,
                tree.padding or 0,
                count_include_pad=tree.count_padding,
            )
    return _build_pointwise(tree, shape, rng)


def _build_layer(conv: Conv, channels: int, rng: torch.Generator) -> nn.Module:
    layer: nn.Module
    if not conv.kernel:
        layer = nn.Linear(channels, conv.outputs, bias=conv.bias)
    else:
        kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[len(conv.kernel) - 1]
        layer = kind(
            channels,
            conv.outputs,
            conv.kernel,
            conv.stride or 1,
            "same" if conv.same else conv.padding or 0,
            conv.dilation or 1,
            conv.groups,
            conv.bias,
            conv.mode,
        )
    with torch.no_grad():
        for parameter in layer.parameters():
            fan_in = math.prod(parameter.shape[1:])
            parameter.normal_(generator=rng).div_(fan_in**0.5)
    return layer


def _build_pointwise(tree: Tree, shape: Shape, rng: torch.Generator) -> nn.Module:
    channels, sizes = shape
    match tree:
        case Scale() | Shift(value=None):
            varied = sizes if tree.spatial else (1,) * len(sizes)
            lead = (1,) if isinstance(tree, Scale) and tree.batched else ()
            values = torch.randn(*lead, channels, *varied, generator=rng)
            if isinstance(tree, Shift):
                return Apply(lambda x, w: x + w, values)
            values = values.sign() * (values.abs() + 0.2)
            return Apply((lambda x, w: w * x) if tree.first else (lambda x, w: x * w), values)
        case Shift():
            return Apply(lambda x: x + tree.value)
        case Times():
            return Apply(lambda x: x / tree.value if tree.divide else x * tree.value)
        case Negate():
            return Apply(lambda x: -x)
        case Identity():
            return nn.Identity()
        case Pad():
            pairs = zip(reversed(tree.before), reversed(tree.after), strict=True)
            amounts = tuple(itertools.chain(*pairs))
            return Apply(lambda x: F.pad(x, amounts))
        case Slice():
            return Apply(lambda x: x[:, tree.start : tree.stop])
        case Activation():
            return Apply(getattr(torch, tree.name))
        case Excite():
            axes = tuple(range(2, 2 + len(sizes))) or (1,)
            return Apply(lambda x: x * torch.sigmoid(x.mean(axes, keepdim=True)))
    raise TypeError(tree)


def _add(values: list[Tensor], signs: tuple[int, ...]) -> Tensor:
    total = values[0]
    for value, sign in zip(values[1:], signs[1:], strict=True):
        total = total + value if sign > 0 else total - value
    return total


def _concatenate(values: list[Tensor]) -> Tensor:
    return torch.cat(values, 1)


# The label of a tree


class InexactError(Exception):
    """The tree is not one convolution; the message is the cause."""


@dataclass(frozen=True)
class Reach:
    """A linear shift-invariant map: shape of its output, strides, taps, and if it has a bias."""

    shape: Shape
    strides: Axes
    taps: tuple[frozenset[int], ...]
    biased: bool = False


def reach_of_nothing(shape: Shape) -> Reach:
    """The map that gives back its input."""
    axes = len(shape[1])
    return Reach(shape, (1,) * axes, (frozenset({0}),) * axes)


def find_flaw(leaf: Tree) -> str:
    """Why `leaf` alone is no linear shift-invariant map, or ``""``."""
    match leaf:
        case Norm(training=True):
            return TRAINING
        case Norm(tracked=False):
            return UNTRACKED
        case Pool(count_padding=False) if any(leaf.padding):
            return POOL
        case Conv() if leaf.mode != "zeros":
            return MODE
        case Scale(spatial=True) | Shift(spatial=True):
            return SPATIAL
        case Activation():
            return NONLINEAR
        case Excite():
            return GATED
        case Tapped():
            return SHARED
    return ""


def trace(tree: Tree, before: Reach, sizes: Axes, *, inside_out: bool = False) -> Reach:
    """The map of `before` and then `tree`, from an input of `sizes`.

    With `inside_out`, what is nested is first composed by itself.

    Raises:
        InexactError: it is none.
    """
    nothing = reach_of_nothing(before.shape)
    match tree:
        case Sequence() | Sum() | Concat() | Split() if inside_out and before != nothing:
            inner = trace(tree, nothing, before.shape[1], inside_out=True)
            return _compose(before, inner, sizes)
        case Sequence():
            for part in tree.parts:
                before = trace(part, before, sizes, inside_out=inside_out)
            return before
        case Sum() | Concat() | Split():
            reaches = []
            for term, shape in _terms_of(tree, before.shape):
                piece = Reach(shape, before.strides, before.taps, before.biased)
                reaches.append(trace(term, piece, sizes, inside_out=inside_out))
            return _unite(reaches, shape_of(tree, before.shape))
    if flaw := find_flaw(tree):
        raise InexactError(flaw)
    windows = windows_of(tree, len(sizes))
    leaf = Reach(
        shape_of(tree, before.shape),
        tuple(window.stride for window in windows),
        tuple(window.taps() for window in windows),
        isinstance(tree, Norm | Shift) or (isinstance(tree, Conv) and tree.bias),
    )
    return _compose(before, leaf, sizes)


def _compose(first: Reach, second: Reach, sizes: Axes) -> Reach:
    """`second` after `first`, whose input has `sizes`."""
    for axis, size in enumerate(sizes):
        for position in _outside_reads(second, first.shape[1], axis):
            if first.biased:
                raise InexactError(BIAS)
            if not _is_dead(first, axis, size, position):
                raise InexactError(BORDER)
    return Reach(
        second.shape,
        tuple(s * t for s, t in zip(first.strides, second.strides, strict=True)),
        tuple(
            frozenset(stride * outer + inner for outer in outers for inner in inners)
            for stride, outers, inners in zip(first.strides, second.taps, first.taps, strict=True)
        ),
        first.biased or second.biased,
    )


def _outside_reads(reach: Reach, sizes: Axes, axis: int) -> set[int]:
    """Positions outside of an input of `sizes` that some output reads."""
    count, stride = reach.shape[1][axis], reach.strides[axis]
    read = {stride * p + tap for p in range(count) for tap in reach.taps[axis]}
    return read - set(range(sizes[axis]))


def _is_dead(reach: Reach, axis: int, size: int, position: int) -> bool:
    """Whether the output at `position` would read nothing of an input of `size`."""
    read = [reach.strides[axis] * position + tap for tap in reach.taps[axis]]
    return max(read) < 0 or min(read) >= size


def _sees(reach: Reach, sizes: Axes) -> bool:
    """Whether any output reads anything but the border."""
    outputs = (range(count) for count in reach.shape[1])
    return all(
        any(not _is_dead(reach, axis, size, place) for place in places)
        for axis, (size, places) in enumerate(zip(sizes, outputs, strict=True))
    )


def _unite(reaches: list[Reach], shape: Shape) -> Reach:
    """The sum or concatenation of maps of one input."""
    if len({reach.shape[1] for reach in reaches}) > 1:
        raise InexactError(BROADCAST)
    if len({reach.strides for reach in reaches}) > 1:
        raise InexactError(STRIDE)
    taps = tuple(frozenset().union(*axis) for axis in zip(*(r.taps for r in reaches), strict=True))
    return Reach(shape, reaches[0].strides, taps, any(reach.biased for reach in reaches))


def judge(tree: Tree, shape: Shape) -> tuple[bool | None, str]:
    """Whether `tree` must merge (None: not for us to say), and if not, why."""
    causes, reaches = [], []
    for inside_out in (False, True):
        try:
            reaches.append(trace(tree, reach_of_nothing(shape), shape[1], inside_out=inside_out))
        except InexactError as error:
            causes.append(str(error))
    if not causes:
        worth = has_layer(tree) and count_operations(tree) > 1 and _sees(reaches[0], shape[1])
        return True if worth else None, ""
    flaws = [flaw for node in walk(tree) if (flaw := find_flaw(node))]
    if flaws:
        return False, flaws[0]
    net = build(tree, shape)
    outputs = shape_of(tree, shape)[1]
    strides = ([1] if m == 1 else range(1, n) for m, n in zip(outputs, shape[1], strict=True))
    response = measure_impulses(net, shape)
    accidental = any(assemble_kernel(*response, s) for s in itertools.product(*strides))
    return (None if accidental or len(causes) < 2 else False), causes[0]


def measure_impulses(net: nn.Module, shape: Shape) -> tuple[Tensor, Tensor]:
    """The network as a matrix: ``(inputs, *sizes, outputs, *sizes)``, and its output of zero."""
    channels, sizes = shape
    count = channels * math.prod(sizes)
    with torch.no_grad():
        still = net(torch.zeros(1, channels, *sizes, dtype=torch.float64))[0]
        rows = net(torch.eye(count, dtype=torch.float64).reshape(count, channels, *sizes)) - still
    return rows.reshape(channels, *sizes, *still.shape), still


def assemble_kernel(rows: Tensor, still: Tensor, strides: Axes) -> tuple[Tensor, Tensor] | None:
    """Weight and bias of the convolution with this impulse response, or None if there is none.

    Output p holds ``W[q - stride·p]`` for the impulse at q; all outputs must agree. The kernel has
    every offset that can be read, from ``-stride·(outputs - 1)`` on.
    """
    sizes, outputs = rows.shape[1 : 1 + len(strides)], still.shape[1:]
    reach = [s * (m - 1) for s, m in zip(strides, outputs, strict=True)]
    spans = [n + r for n, r in zip(sizes, reach, strict=True)]
    kernel = rows.new_full((still.shape[0], rows.shape[0], *spans), torch.nan)
    tolerance = 1e-9 * float(rows.abs().max())
    levels = still.reshape(len(still), -1)
    bias = levels[:, 0]
    if not torch.allclose(levels, bias[:, None], rtol=1e-9, atol=1e-12):
        return None
    for place in itertools.product(*(range(m) for m in outputs)):
        starts = [r - s * p for r, s, p in zip(reach, strides, place, strict=True)]
        window = tuple(slice(a, a + n) for a, n in zip(starts, sizes, strict=True))
        known = kernel[:, :, *window]
        found = rows[..., *place].movedim(-1, 0)
        if bool(((known - found).abs() > tolerance).any()):  # NaN, not yet known, is not greater
            return None
        known.copy_(found)
    return kernel.nan_to_num(), bias


# Drawing trees


@dataclass(frozen=True)
class Goal:
    """What a branch has to give: output channels and sizes, at these strides."""

    channels: int
    sizes: Axes
    strides: Axes


@functools.cache
def _find_windows(size: int, stride: int, outputs: int, padded: bool) -> list[Window]:
    """The layers' windows that give this many outputs, plain ones first."""
    found = []
    for kernel, dilation, padding in itertools.product(range(1, 6), range(1, 4), range(4)):
        window = Window(kernel, stride, padding, padding, dilation)
        plain = kernel > 1 or dilation == 1
        fits = padding <= dilation * (kernel - 1) + 1 and (padded or not padding)
        if plain and fits and window.outputs(size) == outputs:
            found.append(window)
    return found


@functools.cache
def _find_padded_windows(size: int, stride: int, outputs: int) -> list[tuple[Window, Window]]:
    """An explicit border of zeros and a layer's window after it that give this many outputs."""
    found = []
    for before, after in itertools.product(range(3), range(3)):
        for window in _find_windows(size + before + after, stride, outputs, True):
            if window.before < 2 and before + after:
                found.append((Window(before=before, after=after), window))
    return found


def _draw_goal(draw: st.DrawFn, shape: Shape, borders: tuple[bool, ...]) -> Goal:
    """A goal that one layer reaches, reading outside only on the axes in `borders`."""
    channels, sizes = shape
    outputs = draw(st.sampled_from((channels, channels, 1, 2, 3, 4, 5, 6)))
    if draw(st.booleans()):
        return Goal(outputs, sizes, (1,) * len(sizes))
    pairs = []
    for size, padded in zip(sizes, borders, strict=True):
        reached = [
            (stride, count)
            for stride, count in itertools.product((1, 2, 3), range(2, size + 3))
            if _find_windows(size, stride, count, padded)
        ]
        pairs.append(draw(st.sampled_from(reached or [(1, size)])))
    return Goal(outputs, tuple(m for _, m in pairs), tuple(s for s, _ in pairs))


def _draw_conv(
    draw: st.DrawFn, channels: int, outputs: int, windows: list[Window] | tuple[Window, ...]
) -> Conv:
    divisors = [g for g in range(1, 7) if channels % g == outputs % g == 0]
    return Conv(
        outputs,
        tuple(w.kernel for w in windows),
        _unless(1, (w.stride for w in windows)),
        _unless(0, (w.before for w in windows)),
        _unless(1, (w.dilation for w in windows)),
        draw(st.sampled_from(divisors)),
        draw(st.booleans()),
    )


def _unless(neutral: int, values: Iterable[int]) -> Axes:
    """`values`, or nothing if they are all neutral."""
    found = tuple(values)
    return () if set(found) <= {neutral} else found


def _draw_pointwise(draw: st.DrawFn, *, biased: bool) -> Tree:
    """A map of each position by itself that keeps the channels."""
    options: list[Tree] = [Norm()] * 5 + [Norm(affine=False), Shift(), Shift(0.3)] if biased else []
    options += [Scale(), Scale(first=True), Scale(batched=True)]
    options += [Negate(), Identity(), Times(0.7), Times(-3.0, divide=True)]
    return draw(st.sampled_from(options))


@dataclass(frozen=True)
class Place:
    """Where a branch stands.

    Attributes:
        shape: of its input.
        borders: the axes on which it may read outside of its input.
        depth: levels of branches that it may have.
        need: 2, it has weights; 1, it has a layer; 0, it may be anything.
    """

    shape: Shape
    borders: tuple[bool, ...]
    depth: int
    need: int = 0


def _draw_branch(draw: st.DrawFn, place: Place, goal: Goal) -> Tree:
    """A tree that reaches `goal`."""
    (channels, sizes), need = place.shape, place.need
    axes = list(zip(sizes, goal.strides, goal.sizes, place.borders, strict=True))
    kinds = [_draw_layer, _draw_layer_and_point, _draw_point_and_layer]
    kinds += [_draw_two_layers, _draw_explicit_border] if sizes else []
    if need < 2 and sizes and all(_find_pools(*axis) for axis in axes):
        kinds += [_draw_pool]
    if need < 1 and goal.sizes == sizes and set(goal.strides) <= {1}:
        kinds += [_draw_point] * 3
    if place.depth:
        kinds += [_draw_sum] * 7 + [_draw_cut]
        kinds += [_draw_concat] * 2 if goal.channels > 1 else []
        kinds += [_draw_split, _draw_slice] if channels > 1 else []
    return draw(st.sampled_from(kinds))(draw, place, goal)


def _draw_windows(draw: st.DrawFn, place: Place, goal: Goal) -> list[Window]:
    axes = zip(place.shape[1], goal.strides, goal.sizes, place.borders, strict=True)
    return [draw(st.sampled_from(_find_windows(*axis))) for axis in axes]


def _draw_layer(draw: st.DrawFn, place: Place, goal: Goal) -> Conv:
    windows = _draw_windows(draw, place, goal)
    conv = _draw_conv(draw, place.shape[0], goal.channels, windows)
    kept = goal.sizes == place.shape[1] and set(goal.strides) == {1}
    if kept and all(place.borders) and draw(st.integers(0, 7)) == 7:
        return replace(conv, padding=(), same=True)
    return conv


def _draw_layer_and_point(draw: st.DrawFn, place: Place, goal: Goal) -> Tree:
    first = _draw_layer(draw, place, goal)
    if draw(st.booleans()):
        return Sequence((first, _draw_pointwise(draw, biased=True)))
    middle = draw(st.integers(1, 6))
    first = _draw_layer(draw, place, Goal(middle, goal.sizes, goal.strides))
    last = _draw_conv(draw, middle, goal.channels, (Window(),) * len(goal.sizes))
    return Sequence((first, last))


def _draw_point_and_layer(draw: st.DrawFn, place: Place, goal: Goal) -> Tree:
    windows = _draw_windows(draw, place, goal)
    biased = not any(window.before for window in windows)
    channels = place.shape[0]
    first: Tree
    if draw(st.booleans()):
        first, middle = _draw_pointwise(draw, biased=biased), channels
    else:
        middle = draw(st.integers(1, 6))
        first = _draw_conv(draw, channels, middle, (Window(),) * len(windows))
        first = replace(first, bias=biased and first.bias)
    return Sequence((first, _draw_conv(draw, middle, goal.channels, windows)))


def _draw_two_layers(draw: st.DrawFn, place: Place, goal: Goal) -> Tree:
    """Two kernels over space, the second of them without a border."""
    seconds, sizes, strides = [], [], []
    for stride, count in zip(goal.strides, goal.sizes, strict=True):
        inner = draw(st.sampled_from([s for s in (1, 2, 3) if stride % s == 0]))
        kernel, dilation = draw(st.sampled_from([(2, 1), (3, 1), (1, 1), (2, 2)]))
        seconds.append(Window(kernel, inner, dilation=dilation))
        sizes.append(inner * (count - 1) + dilation * (kernel - 1) + 1)
        strides.append(stride // inner)
    middle = Goal(draw(st.integers(1, 6)), tuple(sizes), tuple(strides))
    axes = zip(place.shape[1], middle.strides, middle.sizes, place.borders, strict=True)
    if not all(_find_windows(*axis) for axis in axes):
        return _draw_layer(draw, place, goal)
    first = _draw_layer(draw, place, middle)
    return Sequence((first, _draw_conv(draw, middle.channels, goal.channels, seconds)))


def _draw_explicit_border(draw: st.DrawFn, place: Place, goal: Goal) -> Tree:
    """Zeros around the value, not the same on both sides, and a layer."""
    sizes = place.shape[1]
    if not all(place.borders):
        return _draw_layer(draw, place, goal)
    options = [_find_padded_windows(*a) for a in zip(sizes, goal.strides, goal.sizes, strict=True)]
    if not all(options):
        return _draw_layer(draw, place, goal)
    pairs = [draw(st.sampled_from(option)) for option in options]
    pad = Pad(tuple(p.before for p, _ in pairs), tuple(p.after for p, _ in pairs))
    conv = _draw_conv(draw, place.shape[0], goal.channels, [window for _, window in pairs])
    return Sequence((pad, conv))


@functools.cache
def _find_pools(size: int, stride: int, outputs: int, padded: bool) -> list[Window]:
    """Pools over more than the axis itself are left out: torch.export refuses them."""
    windows = _find_windows(size, stride, outputs, padded)
    fits = [w for w in windows if w.dilation == 1 and w.before <= w.kernel // 2]
    return [w for w in fits if w.kernel <= size]


def _draw_pool(draw: st.DrawFn, place: Place, goal: Goal) -> Tree:
    (channels, sizes), borders = place.shape, place.borders
    axes = zip(sizes, goal.strides, goal.sizes, borders, strict=True)
    windows = [draw(st.sampled_from(_find_pools(*axis))) for axis in axes]
    pool = Pool(
        tuple(w.kernel for w in windows),
        _unless(1, (w.stride for w in windows)),
        _unless(0, (w.before for w in windows)),
    )
    if channels == goal.channels:
        return pool
    return Sequence((pool, _draw_conv(draw, channels, goal.channels, (Window(),) * len(sizes))))


def _draw_point(draw: st.DrawFn, place: Place, goal: Goal) -> Tree:
    if place.shape[0] == goal.channels:
        return Identity() if draw(st.booleans()) else _draw_pointwise(draw, biased=True)
    return _draw_conv(draw, place.shape[0], goal.channels, (Window(),) * len(goal.sizes))


def _deeper(place: Place, need: int | None = None, channels: int | None = None) -> Place:
    shape = (place.shape[0] if channels is None else channels, place.shape[1])
    return Place(shape, place.borders, place.depth - 1, place.need if need is None else need)


def _draw_sum(draw: st.DrawFn, place: Place, goal: Goal) -> Tree:
    """Two or three branches; the first has weights, so that nothing cancels."""
    count = draw(st.sampled_from((2, 2, 3)))
    terms = [_draw_branch(draw, _deeper(place, 0 if i else 2), goal) for i in range(count)]
    signs = (1, *(draw(st.sampled_from((1, -1))) for _ in terms[1:]))
    order = draw(st.integers(0, count - 1))
    return Sum((*terms[order:], *terms[:order]), signs)


def _draw_cut(draw: st.DrawFn, place: Place, goal: Goal) -> Tree:
    """A branch with channels too many, of which some are taken."""
    start, rest = draw(st.integers(0, 2)), draw(st.integers(0, 2))
    wide = Goal(start + goal.channels + rest, goal.sizes, goal.strides)
    branch = _draw_branch(draw, _deeper(place), wide)
    if wide.channels == goal.channels:
        return branch
    return Sequence((branch, Slice(start, start + goal.channels)))


def _draw_concat(draw: st.DrawFn, place: Place, goal: Goal) -> Tree:
    first = draw(st.integers(1, goal.channels - 1))
    goals = [Goal(c, goal.sizes, goal.strides) for c in (first, goal.channels - first)]
    needs = (place.need, 0)
    pairs = zip(goals, needs, strict=True)
    return Concat(tuple(_draw_branch(draw, _deeper(place, need), g) for g, need in pairs))


def _draw_slice(draw: st.DrawFn, place: Place, goal: Goal) -> Tree:
    """A branch that sees some of the channels."""
    start = draw(st.integers(0, place.shape[0] - 1))
    stop = draw(st.integers(start + 1, place.shape[0]))
    branch = _draw_branch(draw, _deeper(place, channels=stop - start), goal)
    if stop - start == place.shape[0]:
        return branch
    return Sequence((Slice(start, stop), branch))


def _draw_split(draw: st.DrawFn, place: Place, goal: Goal) -> Tree:
    """Two branches, each on its own channels."""
    first = draw(st.integers(1, place.shape[0] - 1))
    sizes = (first, place.shape[0] - first)
    added = goal.channels == 1 or draw(st.booleans())
    half = goal.channels // 2
    channels = (goal.channels,) * 2 if added else (half, goal.channels - half)
    needs = (2 if added else place.need, 0)
    terms = [
        _draw_branch(draw, _deeper(place, need, channels=size), Goal(c, goal.sizes, goal.strides))
        for size, c, need in zip(sizes, channels, needs, strict=True)
    ]
    return Split(sizes, tuple(terms), added)


def _draw_mergeable(draw: st.DrawFn, shape: Shape, stages: int, depth: int) -> Tree:
    """Stages of which each reads outside of the one before only where that is zero."""
    parts: list[Tree] = []
    value, borders = shape, (True,) * len(shape[1])
    for stage in range(stages):
        need = int(not stage and draw(st.booleans()))
        goal = _draw_goal(draw, value, borders)
        parts.append(_draw_branch(draw, Place(value, borders, depth, need), goal))
        value = goal.channels, goal.sizes
        try:
            reach = trace(Sequence(tuple(parts)), reach_of_nothing(shape), shape[1])
        except InexactError:
            break
        borders = tuple(
            not reach.biased
            and _is_dead(reach, axis, size, -1)
            and _is_dead(reach, axis, size, reach.shape[1][axis])
            for axis, size in enumerate(shape[1])
        )
    if not has_layer(Sequence(tuple(parts))):
        parts.append(
            _draw_conv(draw, value[0], draw(st.integers(1, 6)), (Window(),) * len(value[1]))
        )
    if count_operations(Sequence(tuple(parts))) < 2:
        parts.append(_draw_pointwise(draw, biased=True))
    return _chain(*parts)


def _chain(*parts: Tree) -> Tree:
    return parts[0] if len(parts) == 1 else Sequence(parts)


FLAWED: dict[str, tuple[Tree, ...]] = {
    NONLINEAR: tuple(Activation(name) for name in ("relu", "tanh", "sigmoid", "abs")),
    GATED: (Excite(),),
    TRAINING: (Norm(training=True), Norm(training=True, affine=False)),
    UNTRACKED: (Norm(tracked=False), Norm(tracked=False, affine=False)),
    SPATIAL: (Scale(spatial=True), Shift(spatial=True)),
}
CAUSES = (*FLAWED, BIAS, BORDER, STRIDE, BROADCAST, POOL, MODE, SHARED)
CAUSES_WITHOUT_AXES = (NONLINEAR, GATED, SHARED)


def _draw_refused(draw: st.DrawFn, shape: Shape, cause: str) -> Tree:
    """A tree with one thing that forbids merging, and beside it what can merge.

    A non-linearity alone is nothing to report; behind it stands a batch norm, which is then left
    over and has to be explained.
    """
    borders = (True,) * len(shape[1])
    place = Place(shape, borders, draw(st.integers(0, 1)), need=1)
    goal = _draw_goal(draw, shape, borders)
    first = _draw_branch(draw, place, goal)
    rest: tuple[Tree, ...] = draw(st.sampled_from(((), (Norm(),), (Scale(),))))
    if cause in FLAWED:
        flawed = draw(st.sampled_from(FLAWED[cause]))
        explained = cause in (TRAINING, UNTRACKED) or (cause == GATED and not rest)
        return Sequence((first, flawed) if explained else (first, flawed, Norm()))
    if cause == SHARED:
        layer = _draw_conv(draw, goal.channels, 2, (Window(),) * len(borders))
        return Tapped(first, draw(st.sampled_from((Norm(), Scale(), layer))))
    if cause == POOL:
        kernel = tuple(min(size, 3) for size in goal.sizes)
        pool = Pool(kernel, padding=(1,) * len(kernel), count_padding=False)
        return Sequence((first, pool, Norm()))
    if cause == MODE:
        layers = [_draw_conv(draw, shape[0], 3, (Window(3, 1, 1, 1),) * len(borders)) for _ in "ab"]
        mode = draw(st.sampled_from(("reflect", "circular", "replicate")))
        return Sequence((Sum((layers[0], replace(layers[1], mode=mode)), (1, 1)), Norm()))
    if cause in (STRIDE, BROADCAST):
        misfit = _draw_misfit(draw, shape, goal, cause)
        return _chain(Sum((first, misfit), (1, draw(st.sampled_from((1, -1))))), *rest)
    second = _draw_padded_layer(draw, goal)
    if cause == BIAS:
        points = (Norm(), Norm(affine=False), Shift(), Shift(0.3))
        refused = Sequence((first, draw(st.sampled_from(points)), second))
    else:
        head = draw(st.sampled_from(((), (Scale(),), (Negate(),))))
        inner = replace(_draw_layer(draw, place, goal), bias=False)
        refused = Sequence((*head, inner, second))
    if rest:
        return Sequence((refused, *rest))
    beside = _draw_layer(draw, place, replace(goal, channels=second.outputs))
    return Sum((refused, beside), (1, 1))


def _draw_padded_layer(draw: st.DrawFn, goal: Goal) -> Conv:
    """A layer that keeps the sizes of `goal` and reads outside of them."""
    axes = [[w for w in _find_windows(size, 1, size, True) if w.before] for size in goal.sizes]
    return _draw_conv(draw, goal.channels, 2, [draw(st.sampled_from(axis)) for axis in axes])


def _draw_misfit(draw: st.DrawFn, shape: Shape, goal: Goal, cause: str) -> Tree:
    """A layer that cannot be added to a branch of `goal`, though the network runs."""
    windows, fits = [], []
    for size, stride, count in zip(shape[1], goal.strides, goal.sizes, strict=True):
        others = [
            window
            for other in (1, 2, 3)
            for window in _find_windows(size, other, count, True)
            if other != stride
        ]
        others = [Window(size)] if cause == BROADCAST else others
        same = _find_windows(size, stride, count, True)
        fits.append(bool(others))
        windows.append(draw(st.sampled_from(others or same)))
    assume(any(fits))
    return _draw_conv(draw, shape[0], goal.channels, windows)


def _draw_shape(draw: st.DrawFn, counts: tuple[int, ...]) -> Shape:
    axes = draw(st.sampled_from(counts))
    size = st.integers(5, 7 if axes == 3 else 9)
    return draw(st.integers(1, 6)), tuple(draw(size) for _ in range(axes))


def _label(tree: Tree, shape: Shape) -> Case:
    mergeable, cause = judge(tree, shape)
    assume(mergeable is not None)
    return Case(shape, tree, bool(mergeable), cause)


@st.composite
def refusals(draw: st.DrawFn, cause: str) -> Case:
    """Trees that are refused for `cause`."""
    shape = _draw_shape(draw, (2, 1, 3, 0) if cause in CAUSES_WITHOUT_AXES else (2, 1, 3))
    case = _label(_draw_refused(draw, shape, cause), shape)
    assume(case.cause == cause)
    return case


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Labelled trees on inputs of 0 to 3 axes; about seven in ten must merge."""
    shape = _draw_shape(draw, (2, 1, 2, 1, 3, 0))
    if draw(st.integers(0, 9)) < 7:
        stages = draw(st.sampled_from((1, 1, 2, 3)))
        return _label(_draw_mergeable(draw, shape, stages, 2 if stages == 1 else 1), shape)
    cause = draw(st.sampled_from(CAUSES if shape[1] else CAUSES_WITHOUT_AXES))
    return _label(_draw_refused(draw, shape, cause), shape)
