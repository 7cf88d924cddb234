"""The algebra of maps against its definition, at shapes and positions of every kind."""

import itertools
import random
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from export.fusion.algebra import (
    LinearMap,
    add_maps,
    compose_maps,
    concatenate_maps,
    make_identity,
    make_window,
    regroup,
    scale_outputs,
    select_outputs,
)
from export.fusion.emission import Layer, emit_layer
from export.fusion.geometry import (
    Axis,
    Inexact,
    border_is_blank,
    compose_axes,
    reads_border,
    unite_axes,
)

TOLERANCE = 1e-12


def run_map(map_: LinearMap, x: Tensor) -> Tensor:
    """The definition, tap by tap: ``y[i] = bias + sum of kernel[k] x[stride i + origin + step k]``.

    Channels are taken one by one as well, and what lies outside of `x` is zero.
    """
    sizes = [axis.outputs for axis in map_.axes]
    y = torch.zeros(len(x), map_.outputs, *sizes, dtype=x.dtype)
    if map_.bias is not None:
        y += map_.bias.reshape(-1, *[1] * len(sizes))
    outputs, inputs = map_.outputs // map_.groups, map_.inputs // map_.groups
    for tap in itertools.product(*(range(axis.taps) for axis in map_.axes)):
        read = x
        for dimension, (axis, k) in enumerate(zip(map_.axes, tap, strict=True), start=2):
            places = [axis.stride * i + axis.origin + axis.step * k for i in range(axis.outputs)]
            inside = torch.tensor([0 <= place < axis.size for place in places])
            read = read.index_select(dimension, torch.tensor(places).clamp(0, axis.size - 1))
            read = read * inside.reshape(-1, *[1] * (x.ndim - 1 - dimension))
        for o in range(map_.outputs):
            for c in range(inputs):
                weight = map_.kernel[(o, c, *tap)]
                y[:, o] += weight * read[:, o // outputs * inputs + c]
    return y


def draw_tensor(draw: random.Random, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(draw.randrange(2**30))
    return torch.randn(shape, dtype=torch.float64, generator=generator)


def draw_axis(draw: random.Random, size: int, *, padded: bool) -> Axis:
    kernel, dilation = draw.choice([1, 1, 2, 3, 4]), draw.randint(1, 2)
    stride = draw.choice([1, 1, 2, 3])
    sides = draw.choice([(0, 0), (1, 1), (2, 2), (0, 1), (3, 0)]) if padded else (0, 0)
    axis = Axis.window(size, kernel, stride=stride, padding=sides, dilation=dilation)
    return axis if axis.outputs > 0 else Axis(size)


def draw_layer(
    draw: random.Random, channels: int, sizes: list[int], *, padded: bool, biased: bool
) -> LinearMap:
    """A layer in any groups, channelwise and with several outputs a channel among them."""
    groups = draw.choice([g for g in (1, 2, 3, channels) if channels % g == 0])
    outputs = groups * draw.randint(1, 2)
    axes = tuple(draw_axis(draw, size, padded=padded) for size in sizes)
    kernel = draw_tensor(draw, outputs, channels // groups, *(axis.taps for axis in axes))
    return LinearMap(kernel, draw_tensor(draw, outputs) if biased else None, groups, axes)


def assert_same(map_: LinearMap, expected: Tensor, x: Tensor) -> None:
    """The map, and the layer that it is emitted as, compute `expected` of `x`."""
    scale = expected.abs().max().clamp_min(1)
    for found in (run_map(map_, x), run_layer(emit_layer(map_), x)):
        assert found.shape == expected.shape
        assert float((found - expected).abs().max() / scale) <= TOLERANCE


def run_layer(layer: Layer, x: Tensor) -> Tensor:
    if not layer.stride:
        return F.linear(x, layer.weight, layer.bias)
    if layer.border is not None:
        x = F.pad(x, [side for sides in reversed(layer.border) for side in sides])
    convolve = (F.conv1d, F.conv2d, F.conv3d)[len(layer.stride) - 1]
    options = layer.stride, layer.padding, layer.dilation, layer.groups
    return convolve(x, layer.weight, layer.bias, *options)


def draw_sizes(draw: random.Random) -> list[int]:
    return [draw.randint(5, 9) for _ in range(draw.choice([0, 1, 2]))]


@pytest.mark.parametrize("groups", [1, 2, 6])
def test_a_layer_is_its_convolution(groups: int) -> None:
    draw = random.Random(groups)
    kernel, bias = draw_tensor(draw, 6, 6 // groups, 2, 3), draw_tensor(draw, 6)
    x = draw_tensor(draw, 2, 6, 8, 7)
    down = Axis.window(8, 2, stride=3, padding=(1, 1))
    across = Axis.window(7, 3, stride=2, padding=(2, 2), dilation=2)
    expected = F.conv2d(x, kernel, bias, (3, 2), (1, 2), (1, 2), groups)
    assert_same(LinearMap(kernel, bias, groups, (down, across)), expected, x)


@pytest.mark.parametrize("seed", range(24))
def test_a_sequence_is_one_after_the_other(seed: int) -> None:
    draw = random.Random(seed)
    channels, sizes = draw.choice([1, 2, 4, 6]), draw_sizes(draw)
    x = draw_tensor(draw, 2, channels, *sizes)
    first = draw_layer(draw, channels, sizes, padded=True, biased=seed % 2 == 0)
    between = [axis.outputs for axis in first.axes]
    second = draw_layer(draw, first.outputs, between, padded=False, biased=seed % 3 == 0)
    assert_same(compose_maps(first, second), run_map(second, run_map(first, x)), x)


@pytest.mark.parametrize("seed", range(24))
def test_a_padded_layer_behind_another_is_right_or_refused(seed: int) -> None:
    """Refused where the first, continued beyond its outputs, gives anything but the border."""
    draw = random.Random(100 + seed)
    sizes = [draw.randint(4, 7)]
    first = draw_layer(draw, 2, sizes, padded=True, biased=seed % 2 == 0)
    second = draw_layer(draw, first.outputs, [first.axes[0].outputs], padded=True, biased=False)
    border = draw.choice([None, first.bias, None if first.bias is None else first.bias * 1.5])
    x = draw_tensor(draw, 2, 2, *sizes)

    pad = second.axes[0]  # the second layer on its input with the border around it
    width = 12
    middle = run_map(first, x)
    fill = middle.new_zeros(first.outputs) if border is None else border
    ring = fill.reshape(1, -1, 1).expand(len(x), -1, width)
    wide = torch.cat([ring, middle, ring], 2)
    shifted = replace(
        pad, size=wide.shape[2], origin=pad.origin + width, margin=pad.margin - 2 * width
    )
    expected = run_map(replace(second, axes=(shifted,)), wide)

    continued = [
        float((run_far(first, x, place) - fill.reshape(1, -1)).abs().max())
        for place in list_read(first, second)
    ]
    if any(difference > 1e-6 for difference in continued):
        with pytest.raises(Inexact, match="border would change"):
            compose_maps(first, second, border)
    else:
        assert_same(compose_maps(first, second, border), expected, x)


def list_read(first: LinearMap, second: LinearMap) -> Iterator[int]:
    """Places beyond the outputs of `first` that `second` reads."""
    (axis,), (inner,) = second.axes, first.axes
    for output, tap in itertools.product(range(axis.outputs), range(axis.taps)):
        place = axis.stride * output + axis.origin + axis.step * tap
        if not 0 <= place < inner.outputs:
            yield place


def run_far(map_: LinearMap, x: Tensor, place: int) -> Tensor:
    """What a map of one axis would give at any place, as its definition goes on."""
    (axis,) = map_.axes
    moved = replace(axis, origin=axis.origin + axis.stride * place, margin=-axis.size)
    return run_map(replace(map_, axes=(moved,)), x)[:, :, 0]


@pytest.mark.parametrize("seed", range(16))
def test_branches_of_any_groups_and_taps_add_up(seed: int) -> None:
    draw = random.Random(200 + seed)
    channels, outputs = 4, 4
    sizes = [draw.randint(5, 8) for _ in range(seed % 3)]
    x = draw_tensor(draw, 2, channels, *sizes)
    maps = []
    for _ in range(2):
        groups = draw.choice([1, 2, 4])
        axes = tuple(
            Axis.window(size, kernel, stride=2, padding=(side, side), dilation=step)
            for size in sizes
            for kernel, side, step in [draw.choice([(1, 0, 1), (3, 1, 1), (3, 2, 2), (5, 2, 1)])]
        )
        kernel = draw_tensor(draw, outputs, channels // groups, *(axis.taps for axis in axes))
        bias = draw_tensor(draw, outputs) if draw.random() < 0.5 else None
        maps.append(LinearMap(kernel, bias, groups, axes))
    one, other = (run_map(map_, x) for map_ in maps)
    before = maps[0].kernel.clone()
    assert_same(add_maps(*maps, 1.0), one + other, x)
    assert_same(add_maps(*maps, -2.5), one - 2.5 * other, x)
    assert torch.equal(maps[0].kernel, before)  # written on a copy
    joined = concatenate_maps([*maps, maps[0]])
    assert_same(joined, torch.cat([one, other, one], 1), x)
    assert_same(
        select_outputs(joined, range(1, 11, 3)), torch.cat([one, other, one], 1)[:, 1:11:3], x
    )
    assert select_outputs(maps[0], range(outputs)) is maps[0]


def test_one_map_alone_is_concatenated_as_it_is() -> None:
    map_ = make_identity(3, [5], torch.empty(()))
    assert concatenate_maps([map_]) is map_


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("shifted", [False, True])
def test_a_scale_and_a_shift_act_on_outputs(biased: bool, shifted: bool) -> None:
    draw = random.Random(7)
    map_ = draw_layer(draw, 4, [6, 5], padded=True, biased=biased)
    x = draw_tensor(draw, 2, 4, 6, 5)
    y = run_map(map_, x)
    for count in (1, map_.outputs):
        scale = draw_tensor(draw, count)
        shift = draw_tensor(draw, count) if shifted else None
        moved = 0 if shift is None else shift.reshape(-1, 1, 1)
        found = scale_outputs(map_, scale, shift)
        assert (found.bias is None) == (not biased and not shifted)
        assert_same(found, y * scale.reshape(-1, 1, 1) + moved, x)
    assert_same(scale_outputs(map_, -2.0, None), -2 * y, x)


def test_an_identity_that_was_scaled_is_none() -> None:
    identity = make_identity(3, [5], torch.empty(()))
    layer = LinearMap(torch.ones(2, 3, 1, dtype=torch.float64), None, 1, (Axis(5),))
    x = draw_tensor(random.Random(0), 2, 3, 5)
    for device in ("cpu", "meta"):
        source = replace(identity, kernel=identity.kernel.to(device))
        assert source.is_identity
        assert not scale_outputs(source, 2.0, None).is_identity
    assert compose_maps(identity, layer) is layer
    assert_same(identity, x, x)
    assert_same(compose_maps(scale_outputs(identity, 2.0, None), layer), 2 * run_map(layer, x), x)


def test_a_window_weighs_every_tap_alike() -> None:
    x = draw_tensor(random.Random(1), 2, 3, 7, 6)
    axes = [Axis.window(7, 2, stride=2, padding=(1, 1)), Axis.window(6, 3, stride=3)]
    expected = F.avg_pool2d(x, (2, 3), (2, 3), (1, 0))
    assert_same(make_window(3, axes, 1 / 6, x), expected, x)


@pytest.mark.parametrize(("groups", "fewer"), [(6, 1), (6, 2), (6, 3), (4, 2), (2, 1)])
def test_fewer_groups_have_the_same_blocks(groups: int, fewer: int) -> None:
    """Written down block by block: group j of the outputs reads group j of the inputs."""
    kernel = draw_tensor(random.Random(0), 2 * groups, 3, 2)
    map_ = LinearMap(kernel, None, groups, (Axis.window(5, 2),))
    dense = torch.zeros(2 * groups, 3 * groups, 2, dtype=torch.float64)
    for j in range(groups):
        dense[2 * j : 2 * j + 2, 3 * j : 3 * j + 3] = kernel[2 * j : 2 * j + 2]
    rows, columns = 2 * groups // fewer, 3 * groups // fewer
    expected = torch.cat(
        [dense[j * rows : (j + 1) * rows, j * columns : (j + 1) * columns] for j in range(fewer)]
    )
    assert torch.equal(regroup(map_, fewer), expected)


def test_maps_that_do_not_meet_are_refused() -> None:
    kernel = torch.ones(2, 3, 1, dtype=torch.float64)
    map_ = LinearMap(kernel, None, 1, (Axis(5),))
    with pytest.raises(Inexact, match="2 channels meet 3"):
        compose_maps(map_, map_)
    with pytest.raises(Inexact, match="2 and 3 channels"):
        add_maps(map_, LinearMap(torch.ones(3, 3, 1), None, 1, (Axis(5),)), 1.0)
    with pytest.raises(Inexact, match=r"different strides \(1 and 2\)"):
        add_maps(map_, replace(map_, axes=(Axis.window(5, 1, stride=2),)), 1.0)
    with pytest.raises(Inexact, match=r"different output sizes \(5, 3\)"):
        add_maps(map_, replace(map_, axes=(Axis(5, margin=-3),)), 1.0)
    unknown = replace(map_, axes=(Axis(None),))
    with pytest.raises(Inexact, match="different output sizes"):
        add_maps(unknown, replace(map_, axes=(Axis(None, margin=0),)), 1.0)


def test_a_border_is_the_bias_up_to_rounding() -> None:
    """It was computed in another order: nine digits are the same, and no more are asked for."""
    bias = torch.tensor([3.0, -0.5], dtype=torch.float64)
    first = LinearMap(torch.ones(2, 1, 1, dtype=torch.float64), bias, 1, (Axis(5),))
    second = make_window(2, [Axis.window(5, 3, padding=(1, 1))], 1.0, bias)
    assert compose_maps(first, second, bias * (1 + 1e-12)).outputs == 2
    one = bias * torch.tensor([1.0, 1.1], dtype=torch.float64)  # of two channels
    for wrong in (bias * (1 + 1e-6), -bias, bias.flip(0), one, None):
        with pytest.raises(Inexact, match="border would change"):
            compose_maps(first, second, wrong)
    unbiased = replace(first, bias=None)
    assert compose_maps(unbiased, second, torch.zeros_like(bias)).bias is None
    with pytest.raises(Inexact, match="border would change"):
        compose_maps(unbiased, second, bias)


def test_axes_of_dilated_layers_keep_the_largest_step() -> None:
    """Taps of the first at 0, 2, 4, of the second at 0, 2, 4 of those: 0, 2 .. 8 in all."""
    dilated = Axis.window(21, 3, dilation=2)
    assert compose_axes(dilated, replace(dilated, size=17)) == Axis(21, 1, 0, 2, 5, -9)
    far = Axis.window(21, 2, stride=2, padding=(1, 0), dilation=3)  # at -1 and 2, then by 2
    both = compose_axes(far, Axis.window(10, 3, dilation=3))
    assert (both.origin, both.step, both.taps, both.stride) == (-1, 3, 6, 2)
    union = unite_axes(dilated, Axis.window(21, 1, padding=(-2, -2)))
    assert (union.origin, union.step, union.taps) == (0, 2, 3)
    assert unite_axes(Axis(5), Axis(5)) == Axis(5)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_sketch_has_the_shape_and_the_groups_of_the_map(device: str) -> None:
    kernel = torch.ones(4, 2, 3, dtype=torch.float64, device=device)
    grouped = LinearMap(kernel, None, 2, (Axis.window(9, 3, padding=(1, 1)),))
    narrow = LinearMap(kernel[:, :1, :1], None, 4, (Axis(9),))
    both = add_maps(grouped, narrow, 1.0)
    assert (tuple(both.kernel.shape), both.groups) == ((4, 2, 3), 2)
    behind = compose_maps(grouped, narrow)
    assert (tuple(behind.kernel.shape), behind.groups) == ((4, 2, 3), 2)


SMALL = [
    Axis.window(None, kernel, stride=stride, padding=sides, dilation=dilation)
    for kernel, dilation in ((1, 1), (2, 1), (3, 1), (2, 3))
    for stride in (1, 2, 3)
    for sides in ((0, 0), (1, 1), (0, 2), (2, 0), (3, 3), (-1, 0))
]


def test_what_is_said_of_an_unknown_size_holds_at_every_size() -> None:
    """Known sizes are told by going through the positions. Where all of them read the border, or
    see it blank, whatever the stride, an unknown one is not told otherwise without need.
    """
    blank = 0
    for first, second in itertools.product(SMALL, SMALL[::5]):
        known = [replace(first, size=size) for size in range(9, 27)]
        known = [axis for axis in known if replace(second, size=axis.outputs).outputs > 0]
        read = [reads_border(axis, second) for axis in known]
        assert not any(read) or reads_border(first, second)
        if border_is_blank(first, second):
            blank += any(read)
            assert all(border_is_blank(axis, second) for axis in known)
        elif second.stride == 1:
            assert not all(border_is_blank(axis, second) for axis in known)
        if second.stride == 1:
            assert reads_border(first, second) == any(read)
    assert blank > 50


@pytest.mark.parametrize("stride", [1, 2, 3])
def test_padding_after_an_unknown_size_is_that_of_every_size(stride: int) -> None:
    for origin, span, margin in itertools.product((-2, 0, 1), (0, 2, 5), (-4, -1, 2)):
        axis = Axis(None, stride, origin, 1, span + 1, margin)
        least, most = axis.padding_after()
        assert least == most
        for size in range(9, 15):
            known = replace(axis, size=size)
            lower, upper = known.padding_after()
            assert lower <= least <= upper
            for after in (lower, upper):
                assert (size - origin + after - span - 1) // stride + 1 == known.outputs
            assert (size - origin + lower - 1 - span - 1) // stride + 1 == known.outputs - 1
            assert (size - origin + upper + 1 - span - 1) // stride + 1 == known.outputs + 1


def spread(kernel: Tensor, step: int, before: int, after: int) -> Tensor:
    """Zeros between the taps of the last axis and around them."""
    taps = kernel.new_zeros(*kernel.shape[:-1], step * (kernel.shape[-1] - 1) + 1)
    taps[..., ::step] = kernel
    return F.pad(taps, (before, after))


@pytest.mark.parametrize(
    ("kernel", "step", "before", "after", "expected"),
    [
        (3, 1, 1, 1, (3, 1, 1)),  # taps, dilation, padding
        (3, 2, 0, 0, (3, 2, 2)),
        (2, 3, 1, 1, (2, 3, 2)),
        (1, 1, 2, 2, (1, 1, 1)),
    ],
)
def test_zeros_at_the_rim_and_between_taps_fall_away(
    kernel: int, step: int, before: int, after: int, expected: tuple[int, int, int]
) -> None:
    draw = random.Random(0)
    wide = spread(draw_tensor(draw, 2, 3, kernel), step, before, after)
    taps = wide.shape[-1]
    padding = expected[2] + before
    x = draw_tensor(draw, 2, 3, 11)
    map_ = LinearMap(wide, None, 1, (Axis.window(11, taps, padding=(padding, padding)),))
    layer = emit_layer(map_)
    assert (layer.weight.shape[-1], layer.dilation[0], layer.padding[0]) == expected
    assert layer.border is None
    assert_same(map_, F.conv1d(x, wide, padding=padding), x)


def test_zeros_stay_where_the_layer_would_need_padding_of_its_own() -> None:
    """Cut on one side alone, it would have to be padded by an operation before it."""
    draw = random.Random(0)
    kernel = F.pad(draw_tensor(draw, 2, 3, 2), (1, 0))
    map_ = LinearMap(kernel, None, 1, (Axis.window(9, 3, padding=(1, 1)),))
    layer = emit_layer(map_)
    assert (layer.weight.shape[-1], layer.padding, layer.border) == (3, (1,), None)


def test_padding_that_differs_is_an_operation_before_the_layer() -> None:
    draw = random.Random(0)
    kernel = draw_tensor(draw, 2, 3, 3, 3)
    axes = (Axis.window(9, 3, padding=(2, 0)), Axis.window(8, 3, padding=(1, 1)))
    layer = emit_layer(LinearMap(kernel, None, 1, axes))
    assert (layer.border, layer.padding) == (((2, 0), (0, 0)), (0, 1))
    cut = emit_layer(LinearMap(kernel, None, 1, (axes[1], Axis.window(8, 3, padding=(-1, -1)))))
    assert (cut.border, cut.padding) == (((0, 0), (-1, -1)), (1, 0))


@pytest.mark.parametrize("groups", [1, 2, 3, 6])
def test_blocks_of_zeros_become_groups(groups: int) -> None:
    draw = random.Random(0)
    kernel, bias = draw_tensor(draw, 12, 6 // groups, 3), draw_tensor(draw, 12)
    map_ = LinearMap(kernel, bias, groups, (Axis.window(7, 3, padding=(1, 1)),))
    dense = replace(map_, kernel=regroup(map_, 1), groups=1)
    layer = emit_layer(dense)
    assert layer.groups == groups
    assert torch.equal(layer.weight, kernel)
    assert layer.macs_per_output == 3 * 6 // groups
    assert layer.parameters == kernel.numel() + 12
    assert replace(layer, bias=None).parameters == kernel.numel()


def test_a_kernel_of_zeros_is_still_a_layer() -> None:
    bias = torch.tensor([1.0, 2.0], dtype=torch.float64)
    x = draw_tensor(random.Random(0), 2, 2, 5)
    axis = Axis.window(5, 3, stride=2, padding=(1, 1))
    map_ = LinearMap(torch.zeros(2, 2, 3, dtype=torch.float64), bias, 1, (axis,))
    assert_same(map_, bias.reshape(1, 2, 1).expand(2, 2, 3), x)
