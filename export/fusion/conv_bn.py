"""Fold batch normalization into the convolution or linear layer before it.

    bn(conv(x, W, b)) = conv(x, W', b'),  W', b' as in ``algebra.fold_batch_norm``

The fold is exact whatever the stride, padding (zeros or not), dilation and groups, because the norm
acts on each output channel alone. So it is past a slice of positions, such as those that a causal
convolution cuts off at the end, and where rows of a linear layer are put into one batch for it. It
is done where the graph proves it: the norm is in inference with stored statistics, nothing else
reads the convolution's result, and the weight is stored and not computed. Everything else is left,
with its reason.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, fx

from export.artifacts import Fused, Skip
from export.fusion.batch_norm import BatchNorm, count_output_channels, fold_batch_norm
from export.fusion.constants import Constants
from export.fusion.cost import count_macs, count_parameters
from export.fusion.draft import Draft, read_argument
from export.fusion.mutation import Mutations
from export.fusion.norm_paths import FLATTENINGS, LAYERS, find_layer, list_cut
from export.fusion.norms import NORMS, read_norm
from export.fusion.operators import describe_layer
from export.fusion.options import FusionOptions
from export.fusion.paths import find_path
from export.fusion.trial import Trial, find_fault, measure_error

aten = torch.ops.aten

_TRANSPOSED = frozenset(
    {aten.conv_transpose1d.default, aten.conv_transpose2d.input, aten.conv_transpose3d.input}
)


@dataclass(frozen=True)
class _Site:
    """A layer and the norm behind it that can be folded."""

    layer: fx.Node
    norm: fx.Node
    result: fx.Node
    weight: Tensor
    bias: Tensor | None
    bn: BatchNorm
    transposed: bool
    groups: int


def fold_conv_bn(
    draft: Draft, options: FusionOptions
) -> tuple[tuple[Fused, ...], tuple[Skip, ...]]:
    """Fold every batch normalization of `draft` that can be folded, and say why not the others."""
    fused: list[Fused] = []
    skipped: list[Skip] = []
    constants = Constants(draft, Mutations(draft.graph))
    norms = [node for node in draft.graph.nodes if node.target in NORMS]
    for norm in [node for node in norms if node not in constants]:  # those are of weights
        site = _match(draft, norm)
        if isinstance(site, _Site):
            rewritten = _rewrite(draft, site)
            if isinstance(rewritten, Fused):
                fused.append(rewritten)
                continue
            site = rewritten
        skipped.append(Skip(find_path(draft, norm), "batch norm", site))
    for norm in (node for node in draft.nested_nodes() if node.target in NORMS):
        reason = "batch norm stands inside a branch of torch.cond or a loop"
        skipped.append(Skip(find_path(draft, norm), "batch norm", reason))
    return tuple(fused), tuple(skipped)


def _match(draft: Draft, norm: fx.Node) -> _Site | str:
    """The site to fold, or the reason why there is none."""
    bn = read_norm(norm, draft.stored)
    if isinstance(bn, str):
        return bn
    result = _find_result(norm)
    if result is None:
        return "the statistics that the batch norm returns are used"
    layer = find_layer(norm)
    if layer is None:
        if any(user.target in LAYERS for user in result.users):
            return "batch norm stands before the convolution"
        return "batch norm follows no convolution or linear layer"
    if isinstance(layer, str):
        return layer
    weight = draft.stored(read_argument(layer, "weight"))
    if weight is None:
        return f"the weight of {find_path(draft, layer)} is computed, not stored"
    bias_node = read_argument(layer, "bias")
    bias = draft.stored(bias_node)
    if bias is None and bias_node is not None:
        return f"the bias of {find_path(draft, layer)} is computed, not stored"
    if bias is not None and bias.ndim > 1:
        return f"the bias of {find_path(draft, layer)} differs by sample"
    transposed = layer.target in _TRANSPOSED or bool(read_argument(layer, "transposed", False))
    groups = int(read_argument(layer, "groups", 1))
    mismatch = _find_mismatch(
        layer,
        read_argument(norm, "input"),
        weight,
        count_output_channels(weight, transposed=transposed, groups=groups),
        bn.channels,
    )
    if mismatch:
        return mismatch
    return _Site(layer, norm, result, weight, bias, bn, transposed, groups)


def _find_result(norm: fx.Node) -> fx.Node | None:
    """The node that carries the normalized tensor; None if saved statistics are read as well."""
    if isinstance(norm.meta.get("val"), Tensor):
        return norm
    used = [user for user in norm.users if user.users]
    if len(used) == 1 and used[0].args[1:] == (0,):
        return used[0]
    return None


def _find_mismatch(
    layer: fx.Node, normalized: fx.Node, weight: Tensor, channels: int, expected: int
) -> str | None:
    """Why the norm's channels are not the layer's; the norm acts on axis 1."""
    rank = normalized.meta["val"].ndim
    if rank != weight.ndim:
        kind = "linear layer" if layer.target is aten.linear.default else "convolution"
        return (
            f"channel mismatch: the {kind} gives a tensor of rank {rank}, whose axis 1 "
            "is not the layer's output channel"
        )
    if channels != expected:
        return f"channel mismatch: {channels} output channels, {expected} normalized ones"
    return None


def _rewrite(draft: Draft, site: _Site) -> Fused | str:
    wide_weight, wide_bias = fold_batch_norm(
        site.weight, site.bias, site.bn, transposed=site.transposed, groups=site.groups
    )
    weight, bias = wide_weight.to(site.weight.dtype), wide_bias.to(site.weight.dtype)
    if not (weight.isfinite().all() and bias.isfinite().all()):
        return f"the folded weight does not fit {str(weight.dtype).removeprefix('torch.')}"
    trial = _make_trial(site)

    def run(x: Tensor, precision: torch.dtype) -> Tensor:
        exact = precision == torch.float64 != site.weight.dtype
        parts = (wide_weight, wide_bias) if exact else (weight, bias)
        value = _run_layer(site.layer, x, *(part.to(precision) for part in parts))
        for node in trial.nodes:
            if node.target is aten.slice.Tensor or node.target in FLATTENINGS:
                value = node.target(value, *node.args[1:], **node.kwargs)
        return value

    error = measure_error(draft, trial, run)
    fault = find_fault(error, site.weight.dtype, terms=site.weight[0].numel())
    if fault is not None:
        return fault
    kind = "linear" if site.layer.target is aten.linear.default else "conv"
    nodes = (site.layer, site.norm)
    fused = Fused(
        paths=(find_path(draft, site.layer), find_path(draft, site.norm)),
        kind=f"{kind}-bn",
        structure=f"bn({describe_layer(site.layer)}(x))",
        parameters_before=count_parameters(draft, nodes),
        parameters_after=weight.numel() + bias.numel(),
        macs_before=sum(map(count_macs, nodes)),
        macs_after=count_macs(site.layer),
        error_float64=error.float64,
        error_float32=error.float32,
        noise_float32=error.noise,
    )
    draft.store(site.layer, "weight", weight, beside=read_argument(site.layer, "weight"))
    draft.store(site.layer, "bias", bias, beside=read_argument(site.layer, "weight"))
    draft.erase(site.result, read_argument(site.norm, "input"))
    if site.norm is not site.result:
        for unused in list(site.norm.users):
            draft.graph.erase_node(unused)
        draft.graph.erase_node(site.norm)
    return fused


def _make_trial(site: _Site) -> Trial:
    """The layer and its norm on random input just larger than the kernel, so that borders count."""
    inputs = site.weight.shape[0] if site.transposed else site.weight.shape[1] * site.groups
    source = read_argument(site.layer, "input")
    shape = [2, inputs, *_choose_sizes(site)]
    if site.layer.target is aten.linear.default:
        shape = [*[2] * (source.meta["val"].ndim - 2), 8, inputs]
    nodes = [site.result]
    while nodes[-1] is not site.layer:
        nodes.append(nodes[-1].all_input_nodes[0])
    for node in nodes:
        cut = list_cut(node) if node.target is aten.slice.Tensor else None
        if cut is not None and cut[1]:
            shape[2 + cut[0]] += cut[1] * _read_option(site.layer, "stride", cut[0])
    dtype, device = site.weight.dtype, site.weight.device
    return Trial(tuple(reversed(nodes)), source, site.result, tuple(shape), dtype, device)


def _choose_sizes(site: _Site) -> list[int]:
    """Spatial sizes from which a few outputs come, or those of the model, where they are smaller.

    A kernel that is dilated far reaches past the whole map; a larger one would show no more of it.
    The padding of transposed layers cuts off.
    """
    captured = read_argument(site.layer, "input").meta["val"].shape[2:]
    sizes = []
    for axis, kernel in enumerate(site.weight.shape[2:]):
        cut = 2 * _read_option(site.layer, "padding", axis) if site.transposed else 0
        size = (kernel - 1) * _read_option(site.layer, "dilation", axis) + 3 + cut
        known = captured[axis]
        sizes.append(min(size, known) if isinstance(known, int) else size)
    return sizes


def _read_option(layer: fx.Node, name: str, axis: int) -> int:
    """``stride``, ``padding`` or ``dilation`` on one spatial axis; one number may stand for all."""
    values = read_argument(layer, name, [1])  # a linear layer has none of them
    return int(values[axis] if len(values) > 1 else values[0])


def _run_layer(layer: fx.Node, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    schema = layer.target._schema  # type: ignore[union-attr]
    options = {a.name: read_argument(layer, a.name) for a in schema.arguments}
    result: Tensor = layer.target(  # type: ignore[operator]
        **{**options, "input": x, "weight": weight, "bias": bias}
    )
    return result
