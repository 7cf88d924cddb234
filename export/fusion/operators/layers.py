"""Convolutions, linear layers, batch norms, average pools and padding as linear maps."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, fx

from export.fusion.algebra import (
    LinearMap,
    compose_maps,
    make_window,
    scale_outputs,
)
from export.fusion.draft import read_argument
from export.fusion.geometry import Axis
from export.fusion.norms import NORMS, read_norm
from export.fusion.operators.base import (
    Frame,
    Layout,
    Operator,
    Reader,
    Survey,
    need_constants,
    read_sizes,
    read_weight,
    tabulate,
)
from export.fusion.paths import find_path

aten = torch.ops.aten

_CONVOLUTIONS = (
    *(aten.conv1d.default, aten.conv1d.padding),
    *(aten.conv2d.default, aten.conv2d.padding),
    *(aten.conv3d.default, aten.conv3d.padding),
    aten.convolution.default,
)
MATRICES: dict[object, tuple[str, ...]] = {
    aten.matmul.default: ("self", "other"),
    aten.mm.default: ("self", "mat2"),
    aten.addmm.default: ("mat1", "mat2", "self"),
}
_POOLS: dict[object, int] = {
    aten.avg_pool1d.default: 1,
    aten.avg_pool2d.default: 2,
    aten.avg_pool3d.default: 3,
}


def describe_layer(node: fx.Node) -> str:
    """A convolution or linear layer in a word, such as ``conv3x3 in 4 groups``."""
    if node.target is aten.linear.default:
        return "linear"
    shape, groups = read_argument(node, "weight").meta["val"].shape, read_argument(node, "groups")
    transposed = "transpose" in str(node.target) or read_argument(node, "transposed", False)
    label = ("deconv" if transposed else "conv") + "x".join(str(size) for size in shape[2:])
    if groups == 1:
        return label
    return f"{label} depthwise" if shape[1] == 1 else f"{label} in {groups} groups"


def read_convolution(survey: Survey, node: fx.Node) -> Operator | str:
    """A convolution with zero padding and stored or constant weights."""
    weight, bias = (read_argument(node, name) for name in ("weight", "bias"))
    if (reason := need_constants(survey, weight, bias)) is not None:
        return reason
    if read_argument(node, "transposed", False):
        return "a transposed convolution merges with its norm alone"
    source, rank = read_argument(node, "input"), weight.meta["val"].ndim - 2
    if source.meta["val"].ndim != rank + 2:
        return "the convolution has no batch axis"
    stride, dilation = (_spread(read_argument(node, n), rank) for n in ("stride", "dilation"))
    groups, given = int(read_argument(node, "groups")), read_argument(node, "padding")
    kernel = tuple(weight.meta["val"].shape[2:])
    if isinstance(given, str):
        totals = [
            d * (k - 1) if given == "same" else 0 for d, k in zip(dilation, kernel, strict=True)
        ]
        padding = [(total // 2, total - total // 2) for total in totals]
    else:
        padding = [(size, size) for size in _spread(given, rank)]

    def apply(maps: Sequence[LinearMap], frame: Frame) -> LinearMap:
        axes = tuple(
            Axis.window(size, k, stride=s, padding=p, dilation=d)
            for size, k, s, p, d in zip(
                read_sizes(source), kernel, stride, padding, dilation, strict=True
            )
        )
        layer = LinearMap(
            read_weight(survey, weight, frame),
            None if bias is None else survey.constants.value(bias, frame.device),
            groups,
            axes,
        )
        return compose_maps(maps[0], layer)

    label = describe_layer(node)
    return Operator((source,), apply, f"{label}({{}})", "first", is_layer=True)


def read_linear(survey: Survey, node: fx.Node) -> Operator | str:
    """``linear``, and its forms in decomposed programs: ``matmul``, ``mm``, ``addmm``."""
    is_linear = node.target is aten.linear.default
    names = MATRICES.get(node.target, ("input", "weight", "bias"))
    source, weight = (read_argument(node, name) for name in names[:2])
    bias = read_argument(node, names[2]) if len(names) > 2 else None
    if (reason := need_constants(survey, weight, bias)) is not None:
        return reason
    if weight.meta["val"].ndim != 2 or source in survey.constants:
        return "a product of matrices that is no linear layer"
    if any(read_argument(node, name, 1) != 1 for name in ("alpha", "beta")):
        return "a scaled product of matrices"
    if bias is not None and any(size != 1 for size in bias.meta["val"].shape[:-1]):
        return "a bias that differs by sample is added"

    def apply(maps: Sequence[LinearMap], frame: Frame) -> LinearMap:
        matrix = read_weight(survey, weight, frame, transposed=not is_linear)
        vector = None if bias is None else survey.constants.value(bias, frame.device)
        if vector is not None:
            vector = vector.reshape(-1).expand(matrix.shape[0])
        return compose_maps(maps[0], LinearMap(matrix, vector, 1, ()))

    layout: Layout | None = "last" if source.meta["val"].ndim > 2 else None
    return Operator((source,), apply, "linear({})", layout, is_layer=True)


def read_batch_norm(survey: Survey, node: fx.Node) -> Operator | str:
    """A batch norm in inference: a scale and a shift for each channel."""
    source = read_argument(node, "input")

    def lookup(device: torch.device) -> Callable[[object], Tensor | None]:
        return lambda item: survey.constants.find(item, device)

    found = read_norm(node, lookup(torch.device("meta")))
    if isinstance(found, str):
        return f"{found}, at {find_path(survey.draft, node)}"

    def apply(maps: Sequence[LinearMap], frame: Frame) -> LinearMap:
        bn = read_norm(node, lookup(frame.device))
        assert not isinstance(bn, str)  # it was read above
        return scale_outputs(maps[0], *bn.scale_and_shift())

    return Operator((source,), apply, "bn({})", "first" if source.meta["val"].ndim > 2 else None)


def read_pool(survey: Survey, node: fx.Node) -> Operator | str:
    """An average pool whose every output averages the same number of values."""
    source = read_argument(node, "self")
    rank = source.meta["val"].ndim - 2
    if rank != _POOLS[node.target]:
        return "the pool has no batch axis"
    kernel = _spread(read_argument(node, "kernel_size"), rank)
    stride = _spread(read_argument(node, "stride") or kernel, rank)
    padding = _spread(read_argument(node, "padding"), rank)
    if any(padding) and not read_argument(node, "count_include_pad", True):
        return "the average pool does not count its padding"
    if read_argument(node, "divisor_override") is not None:
        return "the average pool has a divisor of its own"
    axes = [
        Axis.window(size, k, stride=s, padding=(p, p))
        for size, k, s, p in zip(read_sizes(source), kernel, stride, padding, strict=True)
    ]
    ceil, outputs = bool(read_argument(node, "ceil_mode")), [axis.outputs for axis in axes]
    if ceil and (None in outputs or outputs != read_sizes(node)):
        return "the average pool rounds its output size up"

    def apply(maps: Sequence[LinearMap], frame: Frame) -> LinearMap:
        window = make_window(maps[0].outputs, axes, 1 / math.prod(kernel), maps[0].kernel)
        return compose_maps(maps[0], window)

    label = "avgpool" + "x".join(str(size) for size in kernel)
    return Operator((source,), apply, f"{label}({{}})", "first", is_layer=True, fixed_size=ceil)


def read_pad(survey: Survey, node: fx.Node) -> Operator | str:
    """Padding with zeros, a number, or one value a channel; negative padding cuts off."""
    source = read_argument(node, "self")
    mode, value = read_argument(node, "mode", "constant"), read_argument(node, "value", None)
    if mode != "constant":
        return f"the padding mode is {mode}, not zeros"
    pads, rank = read_argument(node, "pad"), source.meta["val"].ndim
    if not all(isinstance(size, int) for size in pads):
        return "the padding is computed"
    sides = [(pads[2 * i], pads[2 * i + 1]) for i in range(len(pads) // 2)][::-1]
    sides = [(0, 0)] * (rank - 2 - len(sides)) + sides
    if len(sides) > rank - 2:
        return "channels are padded"
    fill = survey.borders.get(node)
    axes = [Axis.window(s, 1, padding=p) for s, p in zip(read_sizes(source), sides, strict=True)]

    def apply(maps: Sequence[LinearMap], frame: Frame) -> LinearMap:
        window = make_window(maps[0].outputs, axes, 1.0, maps[0].kernel)
        border = None
        if fill is not None:
            border = fill.value.to(frame.device)
        elif value:
            border = window.kernel.new_full((window.outputs,), float(value))
        return compose_maps(maps[0], window, border)

    label = "pad({})" if fill is None else "pad with its border({})"
    companions = () if fill is None else fill.nodes
    return Operator(
        (source,), apply, label, "first", companions=companions, fixed_size=fill is not None
    )


def _spread(value: Sequence[int] | int, rank: int) -> list[int]:
    values = [value] if isinstance(value, int) else list(value)
    return values * rank if len(values) == 1 else values


READERS: dict[object, Reader] = {
    **tabulate(read_convolution, *_CONVOLUTIONS),
    **tabulate(read_linear, aten.linear.default, *MATRICES),
    **tabulate(read_batch_norm, *NORMS),
    **tabulate(read_pool, *_POOLS),
    **tabulate(read_pad, aten.pad.default, aten.constant_pad_nd.default),
}
