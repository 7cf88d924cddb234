"""Puts a layer in the place of a region."""

from typing import Any

import torch
from torch import Tensor, fx, nn

from export.fusion.draft import Draft
from export.fusion.emission import Layer
from export.fusion.operators import Survey
from export.fusion.regions import Region, is_dead

aten = torch.ops.aten


def replace_region(
    survey: Survey, region: Region, layer: Layer, stored: tuple[Tensor, Tensor | None], prefix: str
) -> None:
    """Compute the result of `region` by `layer`, and drop what nothing needs any more.

    Args:
        survey: of the graph.
        region: its result is replaced.
        layer: how the new layer is called.
        stored: its weight and bias in their final format.
        prefix: the module under which they are named.
    """
    draft, removed = survey.draft, region.removable()
    read = list_stored(survey, region)
    trained = any(draft.requires_grad(node) for node in read)
    beside = read[0] if read else None
    name = f"{prefix}.merged" if prefix else "merged"
    weight = draft.add(f"{name}.weight", nn.Parameter(stored[0], trained), beside=beside)
    bias = None
    if stored[1] is not None:
        bias = draft.add(f"{name}.bias", nn.Parameter(stored[1], trained), beside=weight)
    meta = _make_meta(region, prefix)
    source = region.source
    with draft.graph.inserting_before(region.result):
        if layer.border is not None:
            source = draft.graph.call_function(_PAD, (region.source, _list_pads(layer), 0.0))
            source.meta = {**meta, "val": _pad_fake(region.source.meta["val"], layer)}
        arguments: list[Any] = [source, weight, bias]
        target = aten.linear.default
        if layer.stride:
            target = getattr(aten, f"conv{len(layer.stride)}d").default
            arguments += [[*layer.stride], [*layer.padding], [*layer.dilation], layer.groups]
        node = draft.graph.call_function(target, tuple(arguments))
        node.meta = {**meta, "val": region.result.meta["val"]}
        if _needs_copy(region):
            node = draft.graph.call_function(aten.contiguous.default, (node,))
            node.meta = {**meta, "val": region.result.meta["val"]}
    region.result.replace_all_uses_with(node)
    _erase(draft, removed)


def run_layer(layer: Layer, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """What the graph computes after `replace_region`."""
    if not layer.stride:
        return nn.functional.linear(x, weight, bias)
    if layer.border is not None:
        x = nn.functional.pad(x, _list_pads(layer))
    convolve = getattr(nn.functional, f"conv{len(layer.stride)}d")
    options = layer.stride, layer.padding, layer.dilation, layer.groups
    result: Tensor = convolve(x, weight, bias, *options)
    return result


def list_original(survey: Survey, region: Region) -> tuple[fx.Node, ...]:
    """The region's nodes, its companions and the operators that compute its constants, in order."""
    members = dict.fromkeys(region.nodes)
    for node in region.nodes:
        members |= dict.fromkeys(region.operators[node].companions)
    for node in list(members):
        for source in node.all_input_nodes:
            if source in survey.constants:
                members |= dict.fromkeys(survey.constants.computed(source))
    return tuple(sorted(members, key=lambda node: survey.mutations.position[node]))


def list_stored(survey: Survey, region: Region) -> list[fx.Node]:
    """The stored tensors that a region reads."""
    nodes = list_original(survey, region)
    read = dict.fromkeys(source for node in nodes for source in node.all_input_nodes)
    return [source for source in read if survey.draft.stored(source) is not None]


def _erase(draft: Draft, removed: tuple[fx.Node, ...]) -> None:
    """Drop `removed`, and what computed constants for them alone."""
    queue = list(reversed(removed))
    while queue:
        node = queue.pop()
        if node._erased:
            continue
        for user in list(node.users):
            if is_dead(user):
                draft.graph.erase_node(user)
        sources = node.all_input_nodes
        draft.graph.erase_node(node)
        queue += [source for source in sources if source not in removed and is_dead(source)]


def _needs_copy(region: Region) -> bool:
    """Whether the region also laid values out anew, which views behind it may count on.

    A convolution lays its output out as its input: in channels_last where that is.
    """
    source, result = region.source.meta["val"], region.result.meta["val"]
    return _is_row_major(result) and not _is_row_major(source)


def _is_row_major(value: Tensor) -> bool:
    """Asked without comparing sizes, which would fix those that are not known."""
    strides: list[Any] = [1]
    for size in reversed(value.shape[1:]):
        strides.append(strides[-1] * size)
    return [*map(str, value.stride())] == [*map(str, reversed(strides))]


def _list_pads(layer: Layer) -> list[int]:
    """As ``pad`` takes them: the last axis first."""
    return [size for sides in reversed(layer.border or ()) for size in sides]


def _pad_fake(value: Tensor, layer: Layer) -> Tensor:
    """What stands for `value` behind the border; the operator cannot cut off symbolic sizes."""
    shape = list(value.shape)
    for axis, (before, after) in enumerate(layer.border or (), start=2):
        shape[axis] = shape[axis] + before + after
    return value.new_empty(shape)


def _make_meta(region: Region, prefix: str) -> dict[str, object]:
    """What the merged node tells of where it comes from: the innermost module of all of it.

    Where that is the model itself, which would be no name, it is the module of its first layer.
    """
    layer = region.layers()[0]
    stack = layer.meta.get("nn_module_stack") or {}
    kept = {
        key: entry
        for key, entry in stack.items()
        if not prefix
        or not (path := str(entry[0]).removeprefix("L['self']").strip("."))
        or _holds(path, prefix)
    }
    meta: dict[str, object] = {"nn_module_stack": kept}
    if "stack_trace" in layer.meta:
        meta["stack_trace"] = layer.meta["stack_trace"]
    return meta


def _holds(path: str, prefix: str) -> bool:
    return prefix == path or prefix.startswith(f"{path}.")


_PAD = aten.constant_pad_nd.default
