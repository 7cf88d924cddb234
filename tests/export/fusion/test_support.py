import random

import pytest
import torch
from torch import Tensor

from export.fusion.algebra import (
    LinearMap,
    add_maps,
    compose_maps,
    concatenate_maps,
    make_identity,
    scale_outputs,
    select_outputs,
)
from export.fusion.emission import emit_layer
from export.fusion.geometry import Axis, Inexact

SIZES = (16, 17)


def make_layer(draw: random.Random, map_: LinearMap, device: str) -> LinearMap:
    """A convolution of one axis or more, in any groups, that may stand behind `map_`."""
    possible = [n for n in (1, 2, 3, map_.outputs, map_.outputs) if map_.outputs % n == 0]
    groups = draw.choice(possible)
    outputs = groups * draw.randint(1, 2)
    axes, shape = [], [outputs, map_.outputs // groups]
    for axis in map_.axes:
        kernel = draw.choice([1, 1, 3, 5])
        dilation = draw.randint(1, 2)
        padding = dilation * (kernel // 2)
        axes.append(
            Axis.window(axis.outputs, kernel, padding=(padding, padding), dilation=dilation)
        )
        shape.append(kernel)
    generator = torch.Generator().manual_seed(draw.randrange(2**30))
    kernel_values = torch.randn(shape, dtype=torch.float64, generator=generator)
    return LinearMap(kernel_values.to(device), None, groups, tuple(axes))


def take(draw: random.Random, map_: LinearMap) -> LinearMap:
    start = draw.randrange(map_.outputs)
    stop = draw.randint(start + 1, map_.outputs)
    return select_outputs(map_, range(start, stop, draw.randint(1, 2)))


def grow(draw: random.Random, source: LinearMap, device: str) -> LinearMap:
    """A random map of `source`; the same draws give the same one on any device."""
    map_, before = source, source
    for _ in range(draw.randint(2, 6)):
        step = draw.choice(["layer", "take", "join", "take and join", "add", "scale"])
        last = map_
        try:
            if step == "layer":
                map_ = compose_maps(map_, make_layer(draw, map_, device))
            elif step == "take":
                map_ = take(draw, map_)
            elif step == "join":
                map_ = concatenate_maps([map_, before, source])
            elif step == "take and join":
                cut = draw.randint(1, map_.outputs)
                one = select_outputs(map_, range(cut))
                one = compose_maps(one, make_layer(draw, one, device))
                map_ = concatenate_maps([one, select_outputs(map_, range(cut - 1, map_.outputs))])
            elif step == "add":
                map_ = add_maps(map_, compose_maps(map_, make_layer(draw, map_, device)), 1.0)
            else:
                map_ = scale_outputs(map_, torch.rand(map_.outputs).double() + 1, None)
        except Inexact:
            continue
        before = last
    return map_


def sketch_and_make(seed: int) -> tuple[LinearMap, LinearMap]:
    """One random map on the meta device, and with its weights."""
    made = []
    for device in ("meta", "cpu"):
        draw = random.Random(seed)
        like = torch.empty((), dtype=torch.float64, device=device)
        made.append(grow(draw, make_identity(draw.choice([4, 6]), SIZES, like), device))
    return made[0], made[1]


@pytest.mark.thorough
def test_cost_without_weights_is_that_with_weights_that_have_no_zeros():
    narrow = 0
    for seed in range(400):
        sketch, real = sketch_and_make(seed)
        planned, found = emit_layer(sketch), emit_layer(real)
        assert planned.macs_per_output == found.macs_per_output, seed
        assert planned.weight.shape == found.weight.shape, seed
        assert (planned.groups, planned.dilation) == (found.groups, found.dilation), seed
        narrow += planned.weight.numel() < sketch.kernel.numel()
    assert narrow > 25, "zeros must fall away in many of them"


def test_depthwise_branches_side_by_side_are_told_to_be_depthwise():
    source = make_identity(64, SIZES, torch.empty((), dtype=torch.float64, device="meta"))

    def convolve(kernel: int, channels: range) -> LinearMap:
        part = select_outputs(source, channels)
        axes = tuple(Axis.window(n, kernel, padding=(kernel // 2, kernel // 2)) for n in SIZES)
        weight: Tensor = torch.empty(32, 1, kernel, kernel, dtype=torch.float64, device="meta")
        return compose_maps(part, LinearMap(weight, None, 32, axes))

    joined = concatenate_maps([convolve(3, range(32)), convolve(5, range(32, 64))])
    layer = emit_layer(joined)
    assert layer.groups == 64
    assert layer.weight.shape == (64, 1, 5, 5)
