"""One region and the layer that it is: proven, put in its place, and written down."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from export.artifacts import Fused, Int8Weights, Skip
from export.fusion.algebra import LinearMap
from export.fusion.cost import count_parameters
from export.fusion.draft import Draft
from export.fusion.emission import Layer
from export.fusion.int8_weights import measure_range_ratio, measure_sqnr, round_to_int8
from export.fusion.operators import Survey
from export.fusion.paths import ROOT, find_path, share_path
from export.fusion.regions import Region
from export.fusion.replacement import list_original, replace_region, run_layer
from export.fusion.trial import Error, Trial, find_fault, make_shape, measure_error

CPU = torch.device("cpu")
"""Where maps are worked out, whatever the model lies on."""


@dataclass(frozen=True)
class Merger:
    """A region and the layer that it is.

    Attributes:
        region: of the graph.
        removed: its nodes that go.
        map_: its map, in float64.
        layer: that map as weights.
        macs_before, macs_after: multiply-accumulates of what goes, and of the layer.
    """

    region: Region
    removed: tuple[fx.Node, ...]
    map_: LinearMap
    layer: Layer
    macs_before: int
    macs_after: int


def carry_out(survey: Survey, merger: Merger) -> Fused | Skip:
    """Prove the merged layer and put it in place of its region.

    Returns:
        What was done; or, with the graph as it was, why the proof failed.
    """
    region = merger.region
    where, kind = name_block(survey.draft, region), name_kind(region)
    example = region.source.meta["val"]
    weight = merger.layer.weight.to(example.device, example.dtype)
    bias = (
        None if merger.layer.bias is None else merger.layer.bias.to(example.device, example.dtype)
    )
    if not (weight.isfinite().all() and (bias is None or bias.isfinite().all())):
        name = str(example.dtype).removeprefix("torch.")
        return Skip(where, kind, f"the merged weight does not fit {name}")
    error = _measure(survey, merger, weight, bias)
    fault = find_fault(error, example.dtype, terms=weight[0].numel())
    if fault is not None:
        return Skip(where, kind, fault)
    fused = _describe(survey, merger, error)
    replace_region(
        survey, region, merger.layer, (weight, bias), _common_module(survey.draft, merger)
    )
    return fused


def _measure(survey: Survey, merger: Merger, weight: Tensor, bias: Tensor | None) -> Error:
    """What the layer is off by, with `weight` and `bias` as they will be stored."""
    region, example = merger.region, merger.region.source.meta["val"]
    trial = Trial(
        nodes=list_original(survey, region),
        source=region.source,
        result=region.result,
        shape=make_shape(region.source, merger.map_, captured=region.fixed_size),
        dtype=example.dtype,
        device=example.device,
    )

    def run(x: Tensor, precision: torch.dtype) -> Tensor:
        exact = precision == torch.float64 != example.dtype
        parts = (merger.layer.weight, merger.layer.bias) if exact else (weight, bias)
        vector = None if parts[1] is None else parts[1].to(example.device, precision)
        return run_layer(merger.layer, x, parts[0].to(example.device, precision), vector)

    return measure_error(survey.draft, trial, run)


def _describe(survey: Survey, merger: Merger, error: Error) -> Fused:
    region = merger.region
    read = [node for node in merger.removed if node in region.nodes]
    return Fused(
        paths=list_modules(survey.draft, reversed(read)),
        kind=name_kind(region),
        structure=region.describe(),
        parameters_before=_count_parameters(survey, read),
        parameters_after=merger.layer.parameters,
        macs_before=merger.macs_before,
        macs_after=merger.macs_after,
        error_float64=error.float64,
        error_float32=error.float32,
        noise_float32=error.noise,
        weights=_look_at_weights(region, merger.map_),
    )


def name_kind(region: Region) -> str:
    """``branches`` where values of several inputs are joined, else ``sequence``."""
    joined = any(len(region.operators[node].inputs) > 1 for node in region.nodes)
    return "branches" if joined else "sequence"


def name_block(draft: Draft, region: Region) -> str:
    """The modules of a sequence; of branches the one that holds their layers."""
    if name_kind(region) == "sequence":
        return ", ".join(list_modules(draft, region.nodes))
    return share_path(find_path(draft, node) for node in region.layers()) or ROOT


def _look_at_weights(region: Region, map_: LinearMap) -> Int8Weights:
    """Ranges and int8 error of the weights, of the merged layer and of its parts."""
    ratios = [0.0]
    summed = {
        item
        for node in region.nodes
        if len(region.operators[node].inputs) > 1
        for item in region.operators[node].inputs
    }

    def observe(node: fx.Node, part: LinearMap) -> None:
        if node in summed or (region.operators[node].is_layer and not summed):
            ratios.append(measure_range_ratio(part.kernel))

    rounded = region.work_out(CPU, int8=True, observe=observe)
    return Int8Weights(
        range_ratio_before=max(ratios),
        range_ratio_after=measure_range_ratio(map_.kernel),
        sqnr_db_before=measure_sqnr(map_.kernel, rounded.kernel),
        sqnr_db_after=measure_sqnr(map_.kernel, round_to_int8(map_.kernel)),
    )


def _count_parameters(survey: Survey, nodes: list[fx.Node]) -> int:
    computed = {
        item
        for node in nodes
        for source in node.all_input_nodes
        if source in survey.constants
        for item in survey.constants.computed(source)
    }
    return count_parameters(survey.draft, {*nodes, *computed})


def list_modules(draft: Draft, nodes: Iterable[fx.Node]) -> tuple[str, ...]:
    """Paths of the modules whose tensors `nodes` read."""
    paths = dict.fromkeys(find_path(draft, n) for n in nodes if _reads_stored(draft, n))
    return tuple(path for path in paths if path != ROOT) or (ROOT,)


def _reads_stored(draft: Draft, node: fx.Node) -> bool:
    return any(draft.stored(source) is not None for source in node.all_input_nodes)


def _common_module(draft: Draft, merger: Merger) -> str:
    removed = set(merger.removed)
    layers = [node for node in merger.region.layers() if node in removed]
    return share_path(find_path(draft, node) for node in layers)
