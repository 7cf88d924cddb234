"""Cross-layer equalization: the channels between two layers get ranges that share a scale well.

For a chain ``W2 f(W1 x + b1)`` with f positive homogeneous, any s > 0 a channel gives the same
function with ``W1 / s``, ``b1 / s`` and ``W2 * s``. With r1 and r2 the ranges of a channel in W1
and in W2, ``s = sqrt(r1 * r2) / r2`` makes both equal to their geometric mean, which is best for
one scale a tensor; over all pairs it is repeated until nothing moves.

ReLU6 is not homogeneous: ``min(max(x, 0), 6) / s = min(max(x / s, 0), 6 / s)``. Such a Clip becomes
a Relu and a Min with one ceiling a channel, which is exact but one more operator.

Source: Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", ICCV
2019, section 4.1.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from export.artifacts import OnnxModel, Skip
from export.errors import QuantizeError
from export.onnx.files import read_model, write_model
from export.onnx.graph import GraphIndex, attribute, name_node, node_label
from export.onnx.tensor_types import float_ranks
from quantize.editing import GraphEdit
from quantize.recover.chains import Link, find_links

_SWEEPS = 100
_CONVERGED = 1e-3
_BIAS_OUTLIER = 10.0


@dataclass(frozen=True)
class Equalized:
    """One pair of layers that was equalized.

    Attributes:
        first, second: their labels.
        ratio_before, ratio_after: largest over median range of the first one's output channels.
        ceilings: whether the Clip between them got one ceiling a channel.
    """

    first: str
    second: str
    ratio_before: float
    ratio_after: float
    ceilings: bool


@dataclass(frozen=True)
class EqualizationResult:
    """The equalized model and what was done.

    Attributes:
        model: the written file, of the same function. **Its tensors have other ranges: what was
            calibrated on the model before does not hold for it, calibrate it anew.**
        equalized: pairs of layers, in graph order.
        skipped: layers whose output channels were left, with the reason.
    """

    model: OnnxModel
    equalized: tuple[Equalized, ...]
    skipped: tuple[Skip, ...]


def equalize(model: OnnxModel, path: Path) -> EqualizationResult:
    """Write `model` with equalized channels to `path`.

    The function stays the same but for the rounding of the float32 weights. A channel of zeros in
    either layer keeps its range. No bias grows beyond the largest that its layer had and beyond ten
    times the median of what its layer gets: the constant output of a channel with next to no
    weights would else take the whole range of the activation.

    Args:
        model: the float model; its file is not changed.
        path: the file to write; not `model.path`.

    Raises:
        QuantizeError: `path` is the model itself.
    """
    if model.path.resolve() == path.resolve():
        raise QuantizeError(f"{path} is the float model itself; write the equalized one elsewhere.")
    proto = read_model(model.path)
    edit = GraphEdit(proto)
    graph = edit.graph
    links, skipped = find_links(graph, float_ranks(proto))
    weights = _Weights(graph, links)
    before = [weights.range_ratio(link) for link in links]
    scales = _converge(weights, links)
    weights.store(proto)
    _set_ceilings(edit, links, scales)
    edit.finish()
    write_model(proto, path)
    equalized = tuple(
        Equalized(
            node_label(graph.nodes[link.first]),
            node_label(graph.nodes[link.second]),
            ratio,
            weights.range_ratio(link),
            link.clip is not None,
        )
        for link, ratio in zip(links, before, strict=True)
    )
    return EqualizationResult(replace(model, path=path), equalized, tuple(skipped))


class _Weights:
    """Weights and biases of the linked layers in float64, by the names of their initializers."""

    def __init__(self, graph: GraphIndex, links: list[Link]) -> None:
        self._graph = graph
        self._arrays: dict[str, np.ndarray] = {}
        for number in {number for link in links for number in (link.first, link.second)}:
            for name in graph.nodes[number].input[1:3]:
                tensor = graph.constant(name) if name else None
                if tensor is not None:
                    self._arrays[name] = numpy_helper.to_array(tensor).astype(np.float64)
        self._largest_bias = {
            link.first: float(np.abs(bias).max())
            for link in links
            if (bias := self._bias(link)) is not None
        }

    def choose_scales(self, link: Link) -> np.ndarray:
        """One scale a channel of `link`, from the weights as they stand."""
        first, second = self._first_ranges(link), self._second_ranges(link)
        live = (first > 0) & (second > 0)
        scales = np.sqrt(np.where(live, first, 1) / np.where(live, second, 1))
        bias = self._bias(link)
        if bias is not None and live.any():
            sizes = np.abs(bias)
            usual = float(np.median((sizes / scales)[live]))
            limit = max(self._largest_bias[link.first], _BIAS_OUTLIER * usual)
            scales = np.where(live, np.maximum(scales, sizes / (limit or 1.0)), scales)
        return scales

    def apply(self, link: Link, scales: np.ndarray) -> None:
        """Scale both layers of `link`."""
        node = self._graph.nodes[link.first]
        rows = self._rows(link)
        rows /= scales.reshape(-1, *[1] * (rows.ndim - 1))
        if (bias := self._bias(link)) is not None:
            self._arrays[node.input[2]] = bias / scales
        columns = self._columns(link)
        columns *= np.repeat(scales, link.repeat).reshape(columns.shape[0], 1, -1, 1)

    def range_ratio(self, link: Link) -> float:
        """Largest over median range of the first layer's live channels."""
        ranges = self._first_ranges(link)
        live = ranges[ranges > 0]
        return float(ranges.max() / np.median(live)) if live.size else 1.0

    def store(self, proto: onnx.ModelProto) -> None:
        """Write the arrays into the initializers of `proto`, in float32."""
        for tensor in proto.graph.initializer:
            if tensor.name in self._arrays:
                array = self._arrays[tensor.name].astype(np.float32)
                tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))

    def _bias(self, link: Link) -> np.ndarray | None:
        """Of the first layer, one value a channel."""
        node = self._graph.nodes[link.first]
        if len(node.input) < 3 or not node.input[2]:
            return None
        return np.broadcast_to(self._arrays[node.input[2]].ravel(), self._rows(link).shape[:1])

    def _first_ranges(self, link: Link) -> np.ndarray:
        rows = self._rows(link)
        result: np.ndarray = np.abs(rows).reshape(rows.shape[0], -1).max(axis=1)
        return result

    def _second_ranges(self, link: Link) -> np.ndarray:
        ranges = np.abs(self._columns(link)).max(axis=(1, 3)).reshape(-1, link.repeat)
        result: np.ndarray = ranges.max(axis=1)
        return result

    def _rows(self, link: Link) -> np.ndarray:
        """A view of the first layer's weights, output channels first."""
        node = self._graph.nodes[link.first]
        weight = self._arrays[node.input[1]]
        return weight.T if node.op_type == "Gemm" and not attribute(node, "transB", 0) else weight

    def _columns(self, link: Link) -> np.ndarray:
        """A view of the second layer's weights, [groups, outputs, inputs of the group, kernel]."""
        node = self._graph.nodes[link.second]
        weight = self._arrays[node.input[1]]
        if node.op_type == "Gemm":
            rows = weight if attribute(node, "transB", 0) else weight.T
            return rows[None, :, :, None]
        groups = attribute(node, "group", 1)
        return weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)


def _converge(weights: _Weights, links: list[Link]) -> list[np.ndarray]:
    """Scale every link in turn until nothing moves; the scales of each link in all."""
    totals: list[np.ndarray] = [np.ones(())] * len(links)
    for _ in range(_SWEEPS):
        moved = 0.0
        for index, link in enumerate(links):
            scales = weights.choose_scales(link)
            weights.apply(link, scales)
            totals[index] = totals[index] * scales
            moved = max(moved, float(np.abs(np.log(scales)).max()))
        if moved < _CONVERGED:
            break
    return totals


def _set_ceilings(edit: GraphEdit, links: list[Link], scales: list[np.ndarray]) -> None:
    """Every Clip(0, c) between scaled layers → Relu and Min with c / s, one a channel."""
    for link, total in zip(links, scales, strict=True):
        if link.clip is None:
            continue
        node = edit.graph.nodes[link.clip]
        result, name = node.output[0], name_node(node)
        spatial = [1] * link.spatial_rank
        ceiling = (link.ceiling / total).astype(np.float32).reshape(-1, *spatial)
        limit, positive = edit.store(f"{name}_ceilings", ceiling), edit.name(f"{result}_positive")
        relu = helper.make_node("Relu", [node.input[0]], [positive], name=name)
        least = helper.make_node("Min", [positive, limit], [result], name=f"{name}_min")
        edit.replace(link.clip, [relu, least])
