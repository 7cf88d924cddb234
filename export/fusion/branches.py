"""Merge every linear, shift-invariant sub-graph into one convolution or linear layer.

Branches that a network was trained with (RepVGG, MobileOne, Diverse Branch Block ...), sequences
without a non-linearity, norms, scales and average pools around a layer: whatever leads from one
value to another through such operators alone is one layer, and becomes it if that is exact, proven
by `certificate`, and costs no more. What is left says why.
"""

import torch
from torch import fx

from export.artifacts import Fused, Skip
from export.fusion.borders import find_borders
from export.fusion.constants import Constants
from export.fusion.cost import count_elements, count_macs, is_layer
from export.fusion.draft import Draft
from export.fusion.emission import emit_layer
from export.fusion.geometry import Inexact
from export.fusion.merger import CPU, Merger, carry_out, name_block, name_kind
from export.fusion.mutation import Mutations
from export.fusion.norms import NORMS
from export.fusion.operators import Operators, Survey, is_candidate, read_operators
from export.fusion.options import FusionOptions
from export.fusion.paths import find_path
from export.fusion.regions import Region, grow_regions, is_tensor

_META = torch.device("meta")
_LARGEST_KERNEL = 2**27
"""Elements of a kernel that is still worked out; in float64 that is 1 GiB."""


_Finding = tuple[frozenset[fx.Node], Skip]
"""The layers that were looked at together, and why they are left."""


def merge_branches(
    draft: Draft, options: FusionOptions
) -> tuple[tuple[Fused, ...], tuple[Skip, ...]]:
    """Merge what can be merged in `draft`, the largest regions first, until nothing is left."""
    fused: list[Fused] = []
    refused: dict[str, Skip] = {}
    while True:
        merged, skipped = _sweep(draft, options, refused)
        fused += merged
        if not merged:
            return tuple(fused), (*refused.values(), *skipped)


def _sweep(
    draft: Draft, options: FusionOptions, refused: dict[str, Skip]
) -> tuple[list[Fused], list[Skip]]:
    """Once through the graph, from its end; `refused` gains what failed its proof."""
    mutations = Mutations(draft.graph)
    constants = Constants(draft, mutations)
    survey = Survey(draft, constants, mutations, find_borders(draft, constants, mutations))
    operators = read_operators(survey)
    fused: list[Fused] = []
    reasons: dict[frozenset[fx.Node], Skip] = {}
    for result in reversed(list(operators)):
        if result._erased or result.name in refused:  # gone with a merge, or dead beside one
            continue
        found: Merger | _Finding | None
        if isinstance(operators[result], str):
            found = _explain_refusal(survey, result, operators)
        else:
            found = _find_merger(survey, result, operators, options)
        if isinstance(found, Merger):
            done = carry_out(survey, found)
            if isinstance(done, Fused):
                fused.append(done)
                continue
            refused[result.name] = done
        elif found is not None:
            layers, skip = found
            reasons.setdefault(layers, skip)
    return fused[::-1], list(dict.fromkeys(reversed(reasons.values())))


def _find_merger(
    survey: Survey, result: fx.Node, operators: Operators, options: FusionOptions
) -> Merger | _Finding | None:
    """The largest region ending in `result` that is worth merging; or the reason; or neither."""
    if not is_tensor(result):  # the whole of a split: a layer computes one value
        return None
    position = survey.mutations.position
    regions, stop = grow_regions(result, operators, position)
    finding: _Finding | None = None
    found: Merger | str | None
    joins = len(operators[result].inputs) > 1  # type: ignore[union-attr]
    if not regions and joins:
        layers = frozenset(_layers_before(result, operators))
        if layers:
            return layers, Skip(find_path(survey.draft, result), "branches", stop)
    for smaller, region in reversed(list(zip([None, *regions], regions, strict=False))):
        if smaller is not None and smaller.removable() == region.removable():
            found = None  # it would only read past a value that stays
            if _counts(survey, region, options):
                found = "a value between is used elsewhere as well"
        else:
            found = _consider(survey, region, options)
        if isinstance(found, Merger):
            return found
        if found is not None:
            skip = Skip(name_block(survey.draft, region), name_kind(region), found)
            finding = frozenset(region.layers()), skip
    return finding


def _explain_refusal(survey: Survey, node: fx.Node, operators: Operators) -> _Finding | None:
    """Why an operator that could be part of a merge is none, where layers stand before it."""
    reason = operators[node]
    layers = frozenset().union(*(_layers_before(i, operators) for i in node.all_input_nodes))
    if not layers or not isinstance(reason, str) or not is_candidate(node):
        return None
    return layers, Skip(find_path(survey.draft, node), "branches", reason)


def _consider(survey: Survey, region: Region, options: FusionOptions) -> Merger | str | None:
    """The layer that `region` is; why it is not to be merged; or None where that is no question."""
    if _counts(survey, region, options):
        return _weigh(survey, region, options)
    costly = region.costly()
    if len(costly) > 1 and (
        costly[-1] is region.result or not _is_layer_and_norm(survey, region, costly)
    ):
        return None
    least = max(1, len(costly))
    if not _has_layer(region, options) or len(region.moves()) <= least:
        return None
    found = _weigh(survey, region, options)  # a layer and what only moves data, such as padding
    if isinstance(found, str) or len(region.moves()) <= least + (found.layer.border is not None):
        return None
    return found


def _weigh(survey: Survey, region: Region, options: FusionOptions) -> Merger | str:
    """The layer that `region` is, or why it is not to be merged."""
    removed, layers = region.removable(), region.layers()
    saved = [node for node in removed if count_macs(node)]
    before, elements = sum(map(count_macs, saved)), count_elements(region.result)
    if not elements:
        return "its result has no elements"
    try:
        sketch = region.work_out(_META)
        if sketch.kernel.numel() > _LARGEST_KERNEL:
            return f"the merged kernel would have {sketch.kernel.numel():,} elements"
        after = elements * emit_layer(sketch).macs_per_output
        if after > before and not options.merge_always:
            return _decline(before, after, region, removed)
        map_ = region.work_out(CPU)
    except Inexact as reason:
        return str(reason)
    layer = emit_layer(map_)
    after = elements * layer.macs_per_output
    if not set(layers) & set(removed) or len(saved) < min(2, len(region.costly())):
        return "every layer of it is used elsewhere as well"
    if after > before and not options.merge_always:
        return _decline(before, after, region, removed)
    if survey.mutations.is_changed_between(
        region.source, region.result, without=frozenset(removed)
    ):
        return "the value that the branches read is changed in place between them"
    return Merger(region, removed, map_, layer, before, after)


def _counts(survey: Survey, region: Region, options: FusionOptions) -> bool:
    """Whether there is anything to merge, beyond what `conv_bn` folds."""
    costly = region.costly()
    if not _has_layer(region, options) or len(costly) < 2:
        return False
    return not _is_layer_and_norm(survey, region, costly)


def _has_layer(region: Region, options: FusionOptions) -> bool:
    """Whether the merged layer would take the place of another, or of a sum of branches.

    A pool with a norm or a border is one layer too, but a convolution in its place is slower;
    it is merged where everything is asked for.
    """
    joined = any(len(region.operators[node].inputs) > 1 for node in region.nodes)
    wanted = options.merge_always or joined or any(map(is_layer, region.nodes))
    return bool(region.layers()) and wanted


def _decline(before: int, after: int, region: Region, removed: tuple[fx.Node, ...]) -> str:
    shared = "" if {*region.nodes} <= {*removed} else ", since parts of it are used elsewhere"
    return f"it would not pay: {after:,} MACs merged, {before:,} as it is{shared}"


def _is_layer_and_norm(survey: Survey, region: Region, costly: list[fx.Node]) -> bool:
    """What `conv_bn` folds: a layer whose weights are stored, and its norm."""
    return (
        len(costly) == 2
        and costly[1].target in NORMS
        and is_layer(costly[0])
        and all(
            survey.draft.stored(source) is not None
            for source in costly[0].all_input_nodes
            if source in survey.constants
        )
    )


def _layers_before(result: fx.Node, operators: Operators) -> set[fx.Node]:
    """The layers from which `result` comes through linear operators."""
    found: set[fx.Node] = set()
    queue, seen = [result], set()
    while queue:
        node = queue.pop()
        operator = operators.get(node)
        if isinstance(operator, str) or operator is None or node in seen:
            continue
        seen.add(node)
        if operator.is_layer:
            found.add(node)
        queue += operator.inputs
    return found
