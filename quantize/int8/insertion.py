"""ONNX float32 → ONNX with QuantizeLinear and DequantizeLinear around what runs in int8.

``real = scale * (code - zero_point)``, uint8 or int8 codes (Jacob et al., "Quantization and
Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference", CVPR 2018). Weights
are stored as int8 with a DequantizeLinear behind them, so the file shrinks as well.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from onnx import NodeProto, TensorProto, helper

from export.artifacts import OnnxModel, Skip
from export.errors import NothingToQuantizeError, QuantizeError
from export.onnx.files import read_model, write_model
from export.onnx.graph import GraphIndex, find_opset, name_node
from quantize.calibration.ranges import Ranges
from quantize.editing import GraphEdit
from quantize.int8.adjustments import Adjustments
from quantize.int8.codes import (
    activation_parameters,
    has_unsigned_codes,
    ranges_by_tensor,
)
from quantize.int8.float_guards import count_input_channels, guard_float_layers
from quantize.int8.weight_codes import WeightCodes
from quantize.placement.pixels import drop_unread_casts, find_pixels, move_bytes, shift_by_planes
from quantize.placement.pooling import use_global_pooling
from quantize.placement.walk import Placement, place
from quantize.scheme import QuantScheme

MIN_OPSET = 13
"""The first opset whose DequantizeLinear has an axis."""


@dataclass(frozen=True)
class Int8Result:
    """The quantized model and what was done to it.

    Attributes:
        model: the written file; inputs and outputs as they were.
        quantized: names of the nodes put in int8.
        skipped: nodes that have weights and stay float, with the reason.
    """

    model: OnnxModel
    quantized: tuple[str, ...]
    skipped: tuple[Skip, ...]


def quantize_int8(
    model: OnnxModel,
    ranges: Ranges,
    scheme: QuantScheme,
    path: Path,
    *,
    adjustments: Adjustments | None = None,
) -> Int8Result:
    """Write `model` with Q/DQ for the target of `scheme` to `path`.

    Args:
        model: the float model; its file is not changed.
        ranges: from `calibrate` on the same model.
        scheme: one of `quantize.scheme.PRESETS`, or one made from it.
        path: the file to write; not `model.path`.
        adjustments: from `quantize.recover.recovery.recover` on the same model, ranges and scheme;
            None rounds every weight to nearest. Those of layers that stay float are not used.

    Raises:
        NothingToQuantizeError: the model has nothing that runs in int8 on this target.
        QuantizeError: the opset is below 13, a range is missing, `path` is the model itself, or
            `adjustments` were made from another model.
    """
    if model.path.resolve() == path.resolve():
        raise QuantizeError(f"{path} is the float model itself; write the int8 one elsewhere.")
    proto = read_model(model.path)
    opset = find_opset(proto)
    if opset < MIN_OPSET:
        raise QuantizeError(
            f"opset {opset} cannot hold per-channel Q/DQ; export with opset {MIN_OPSET} or later"
        )
    twins = use_global_pooling(proto)
    if scheme.moves_transposes:
        shift_by_planes(proto)
    edit = GraphEdit(proto)
    placement = place(edit.graph, scheme)
    if not placement.weights:
        reasons = "; ".join(f"{skip.where}: {skip.reason}" for skip in placement.skipped[:3])
        raise NothingToQuantizeError(
            f"{model.path.name} has nothing to quantize for {scheme.name}: "
            + (reasons or "no operator with weights that runs in int8 there")
        )
    known = ranges_by_tensor(ranges, twins, scheme)
    adjustments = adjustments or Adjustments()
    _refuse_foreign(adjustments, edit.graph)
    _Rewriter(edit, placement, scheme).rewrite(known, adjustments)
    drop_unread_casts(proto)
    write_model(proto, path)
    names = (edit.graph.nodes[number] for number in sorted(placement.int8))
    return Int8Result(
        replace(model, path=path),
        tuple(name_node(node) for node in names),
        tuple(placement.skipped),
    )


def _refuse_foreign(adjustments: Adjustments, graph: GraphIndex) -> None:
    unknown = sorted(set(adjustments.layers) - {name_node(node) for node in graph.nodes})
    if unknown:
        raise QuantizeError(
            f"The adjustments are for a node {unknown[0]!r} that this model has not; recover them "
            "from this very model."
        )


class _Rewriter:
    """Inserts the pairs of one placement into one model."""

    def __init__(self, edit: GraphEdit, placement: Placement, scheme: QuantScheme) -> None:
        self._edit, self._placement, self._scheme = edit, placement, scheme
        self._graph = edit.graph
        self._channels: Mapping[int, int] = {}

    def rewrite(self, ranges: Mapping[str, tuple[float, float]], adjustments: Adjustments) -> None:
        """Change the model in place."""
        scales = {name: self._parameters(name, ranges) for name in self._placement.activations}
        if self._scheme.guards_float_layers:
            self._channels = count_input_channels(self._graph)
        originals = {
            number: node.input[0] for number, node in enumerate(self._graph.nodes) if node.input
        }
        weights = WeightCodes(self._edit, self._scheme)
        for use in self._placement.weights:
            layer = adjustments.layers.get(name_node(self._graph.nodes[use.node]))
            weights.store(use, float(scales[originals[use.node]][0]), layer)
        for name, activation in self._placement.activations.items():
            if activation.pair:
                self._insert_pair(name, *scales[name])
        self._edit.finish()

    def _insert_pair(self, name: str, scale: np.float32, zero_point: np.integer[Any]) -> None:
        """Q and DQ for one activation, and what guards the float layers behind it."""
        parameters = (np.asarray(scale, np.float32), np.asarray(zero_point))
        pair = self._make_pair(name, *parameters)
        nodes = list(pair)
        if self._scheme.guards_float_layers:
            nodes += guard_float_layers(
                self._edit, self._placement.int8, pair, parameters, self._channels
            )
        pixels = (
            find_pixels(self._graph, name) if self._placement.activations[name].pixels else None
        )
        if pixels is not None:
            nodes[:1] = move_bytes(*pixels, pair[0].output[0])
            if not pixels[1]:  # nothing moves the bytes: they are read where they come in
                for node in nodes:
                    _rename(node.input, pair[0].output[0], pixels[0])
        if name in self._graph.inputs:
            self._edit.lead(*nodes)
        else:
            self._edit.follow(self._graph.producer[name], nodes)

    def _parameters(
        self, name: str, ranges: Mapping[str, tuple[float, float]]
    ) -> tuple[np.float32, np.integer[Any]]:
        """The scale, and the zero point in the type of the codes."""
        use = self._placement.activations[name]
        if use.like not in ranges:
            raise QuantizeError(
                f"Tensor {use.like!r} has no calibrated range; calibrate this very model again."
            )
        low, high = ranges[use.like]
        scale, zero_point = activation_parameters(low, high, self._scheme, use)
        kind = np.uint8 if has_unsigned_codes(low, self._scheme, use) else np.int8
        return scale, kind(zero_point)

    def _make_pair(
        self, name: str, scale: np.ndarray, zero_point: np.ndarray
    ) -> tuple[NodeProto, NodeProto]:
        """Moves the readers of the activation to the dequantized tensor."""
        use = self._placement.activations[name]
        parameters = [
            self._edit.store(f"{name}_scale", scale),
            self._edit.store(f"{name}_zero_point", zero_point),
        ]
        source, result = name, self._edit.name(f"{name}_dequantized")
        if use.read_by_all and name in self._graph.outputs:
            source, result = self._edit.name(f"{name}_float"), name  # the output keeps its name
            _rename(self._graph.nodes[self._graph.producer[name]].output, name, source)
        else:
            for number in set(self._graph.readers[name]):
                if use.read_by_all or number in self._placement.int8:
                    _rename(self._graph.nodes[number].input, name, result)
        code = self._edit.name(f"{name}_quantized")
        return (
            helper.make_node(
                "QuantizeLinear", [source, *parameters], [code], name=f"{name}_QuantizeLinear"
            ),
            helper.make_node(
                "DequantizeLinear", [code, *parameters], [result], name=f"{name}_DequantizeLinear"
            ),
        )


def _rename(names: "TensorProto | list[str]", old: str, new: str) -> None:
    for number, name in enumerate(names):
        if name == old:
            names[number] = new
