"""ONNX float32 → ONNX with QuantizeLinear and DequantizeLinear around what runs in int8.

``real = scale * (code - zero_point)``, uint8 or int8 codes (Jacob et al., "Quantization and
Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference", CVPR 2018). Weights
are stored as int8 with a DequantizeLinear behind them, so the file shrinks as well.
"""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from export.artifacts import OnnxModel, Skip
from export.errors import NothingToQuantizeError, QuantizeError
from export.execute import read_model, write_model
from export.graph import GraphIndex, attribute, name_node, node_label
from quantize.adjustments import Adjustments, LayerAdjustment
from quantize.codes import (
    activation_parameters,
    has_unsigned_codes,
    ranges_by_tensor,
    smallest_scales,
    weight_scales,
)
from quantize.matching import WeightUse
from quantize.placement import Placement, place
from quantize.pooling import use_global_pooling
from quantize.ranges import Ranges
from quantize.scheme import QuantScheme

_QUANTIZED_BY_THE_TARGET = frozenset({"Conv", "ConvTranspose", "Gemm"})
"""See `QuantScheme.guards_float_layers`."""
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
    opset = next(item.version for item in proto.opset_import if item.domain in ("", "ai.onnx"))
    if opset < MIN_OPSET:
        raise QuantizeError(
            f"opset {opset} cannot hold per-channel Q/DQ; export with opset {MIN_OPSET} or later"
        )
    twins = use_global_pooling(proto)
    graph = GraphIndex(proto)
    placement = place(graph, scheme)
    if not placement.weights:
        reasons = "; ".join(f"{skip.where}: {skip.reason}" for skip in placement.skipped[:3])
        raise NothingToQuantizeError(
            f"{model.path.name} has nothing to quantize for {scheme.name}: "
            + (reasons or "no operator with weights that runs in int8 there")
        )
    known = ranges_by_tensor(ranges, twins, scheme)
    adjustments = adjustments or Adjustments()
    _refuse_foreign(adjustments, graph)
    _Rewriter(proto, graph, placement, scheme).rewrite(known, adjustments)
    write_model(proto, path)
    names = (graph.nodes[number] for number in sorted(placement.int8))
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
    """Inserts the pairs of one placement into one model, in topological order."""

    def __init__(
        self,
        proto: onnx.ModelProto,
        graph: GraphIndex,
        placement: Placement,
        scheme: QuantScheme,
    ) -> None:
        self._proto, self._graph, self._placement, self._scheme = proto, graph, placement, scheme
        self._taken = {name for node in graph.nodes for name in (*node.input, *node.output)}
        self._taken |= {tensor.name for tensor in proto.graph.initializer}
        self._stored: dict[tuple[str, int, bytes], str] = {}
        self._head: list[NodeProto] = []

    def rewrite(self, ranges: Mapping[str, tuple[float, float]], adjustments: Adjustments) -> None:
        """Change the model in place."""
        scales = {name: self._parameters(name, ranges) for name in self._placement.activations}
        originals = {
            number: node.input[0] for number, node in enumerate(self._graph.nodes) if node.input
        }
        for use in self._placement.weights:
            layer = adjustments.layers.get(name_node(self._graph.nodes[use.node]))
            self._store_weights(use, float(scales[originals[use.node]][0]), layer)
        produced = [list(node.output) for node in self._graph.nodes]
        pairs = {
            name: self._pair(name, *scales[name])
            for name, use in self._placement.activations.items()
            if use.pair
        }
        if self._scheme.guards_float_layers:
            for pair in pairs.values():
                pair.extend(self._guard_float_layers(*pair))
        body = [node for name, pair in pairs.items() if name in self._graph.inputs for node in pair]
        for node, names in zip(self._graph.nodes, produced, strict=True):
            body.append(node)
            for name in names:
                body.extend(pairs.get(name, ()))
        del self._proto.graph.node[:]
        self._proto.graph.node.extend(_drop_unread(self._head + body, self._proto, self._graph))

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

    def _pair(self, name: str, scale: np.float32, zero_point: np.integer[Any]) -> list[NodeProto]:
        """Q and DQ for one activation; moves its readers to the dequantized tensor."""
        use = self._placement.activations[name]
        parameters = [
            self._initializer(f"{name}_scale", np.asarray(scale, np.float32)),
            self._initializer(f"{name}_zero_point", np.asarray(zero_point)),
        ]
        source, result = name, self._fresh(f"{name}_dequantized")
        if use.read_by_all and name in self._graph.outputs:
            source, result = self._fresh(f"{name}_float"), name  # the output keeps its name
            _rename(self._graph.nodes[self._graph.producer[name]].output, name, source)
        else:
            for number in set(self._graph.readers[name]):
                if use.read_by_all or number in self._placement.int8:
                    _rename(self._graph.nodes[number].input, name, result)
        code = self._fresh(f"{name}_quantized")
        return [
            helper.make_node(
                "QuantizeLinear", [source, *parameters], [code], name=f"{name}_QuantizeLinear"
            ),
            helper.make_node(
                "DequantizeLinear", [code, *parameters], [result], name=f"{name}_DequantizeLinear"
            ),
        ]

    def _guard_float_layers(
        self, quantize: NodeProto, dequantize: NodeProto
    ) -> Iterator[NodeProto]:
        """For layers in float that read a pair: a DequantizeLinear whose scale is a channel's own.

        ONNX Runtime (weight_bias_quantization.cc) would put their weights into int8 as well, all
        channels with one scale. A tensor of one channel cannot be told apart from one with one
        scale; its float layers read it as it was before it was quantized.
        """
        (result,) = dequantize.output
        guards: dict[int, str] = {}
        for number, node in enumerate(self._graph.nodes):
            if number in self._placement.int8 or node.op_type not in _QUANTIZED_BY_THE_TARGET:
                continue
            weight = self._graph.constant(node.input[1])
            if node.input[0] != result or weight is None:
                continue
            channels = _input_channels(node, weight)
            if channels == 1:
                node.input[0] = quantize.input[0]
                continue
            if channels not in guards:
                guards[channels] = self._fresh(f"{quantize.input[0]}_dequantized_by_channel")
                yield self._dequantize_by_channel(dequantize, channels, guards[channels])
            node.input[0] = guards[channels]

    def _dequantize_by_channel(
        self, dequantize: NodeProto, channels: int, result: str
    ) -> NodeProto:
        code, *parameters = dequantize.input
        inputs = [code]
        for name in parameters:
            (tensor,) = (item for item in self._proto.graph.initializer if item.name == name)
            wide = np.full(channels, numpy_helper.to_array(tensor))
            inputs.append(self._initializer(f"{name}_by_channel", wide))
        name = f"{result}_DequantizeLinear"
        return helper.make_node("DequantizeLinear", inputs, [result], name=name, axis=1)

    def _store_weights(
        self, use: WeightUse, activation_scale: float, layer: LayerAdjustment | None
    ) -> None:
        node = self._graph.nodes[use.node]
        weight = self._array(use.weight)
        if not np.isfinite(weight).all():
            raise QuantizeError(f"The weights of {node_label(node)} hold NaN or infinity.")
        bias = self._array(use.bias) if use.bias and self._scheme.integer_bias else None
        if layer is not None and layer.bias is not None:
            bias = layer.bias
        codes, scales = self._encode(weight, use, bias, activation_scale, layer)
        node.input[1] = self._dequantized(use.weight, codes, scales, use.axis)
        if bias is None:
            return
        name = use.bias or f"{use.weight}_bias"
        if self._scheme.integer_bias:
            unit = (np.float32(activation_scale) * scales).astype(np.float32)
            integers = np.rint(bias / unit.astype(np.float64)).astype(np.int32)
            name = self._dequantized(name, integers, unit, 0)
        else:
            name = self._initializer(name, bias)
        node.input[2:] = [name]

    def _encode(
        self,
        weight: np.ndarray,
        use: WeightUse,
        bias: np.ndarray | None,
        activation_scale: float,
        layer: LayerAdjustment | None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Codes and scales; the chosen ones, but where the bias would overflow its int32."""
        limited = bias if self._scheme.integer_bias else None
        scales = weight_scales(
            weight,
            use.axis,
            limited,
            activation_scale,
            per_channel=self._scheme.per_channel_weights,
            levels=self._scheme.weight_levels,
        )
        levels = self._scheme.weight_levels
        shape = [-1 if axis == use.axis else 1 for axis in range(weight.ndim)]
        kept = None
        if layer is not None and layer.codes is not None and layer.scales is not None:
            kept = np.ones(scales.shape, bool)
            if limited is not None:
                kept = layer.scales >= smallest_scales(limited, activation_scale)
            scales = np.where(kept, layer.scales, scales).astype(np.float32)
        codes = np.clip(np.rint(weight / scales.reshape(shape)), -levels, levels).astype(np.int8)
        if kept is not None and layer is not None and layer.codes is not None:
            codes = np.where(kept.reshape(shape), layer.codes, codes)
        return codes, scales

    def _dequantized(self, name: str, codes: np.ndarray, scales: np.ndarray, axis: int) -> str:
        """Name of the dequantized constant; one copy for all who want the same codes."""
        digest = hashlib.sha256(codes.tobytes()).digest()
        key = (name, axis, scales.tobytes() + digest)
        if key not in self._stored:
            inputs = [
                self._initializer(f"{name}_quantized", codes),
                self._initializer(f"{name}_scale", scales),
                self._initializer(f"{name}_zero_point", np.zeros(scales.shape, codes.dtype)),
            ]
            self._stored[key] = self._fresh(f"{name}_dequantized")
            self._head.append(
                helper.make_node(
                    "DequantizeLinear",
                    inputs,
                    [self._stored[key]],
                    name=f"{self._stored[key]}_DequantizeLinear",
                    axis=axis,
                )
            )
        return self._stored[key]

    def _array(self, name: str) -> np.ndarray:
        tensor = self._graph.constant(name)
        assert tensor is not None  # the placement has matched it
        return numpy_helper.to_array(tensor)

    def _initializer(self, name: str, array: np.ndarray) -> str:
        name = self._fresh(name)
        self._proto.graph.initializer.append(numpy_helper.from_array(array, name))
        return name

    def _fresh(self, name: str) -> str:
        candidate, number = name, 1
        while candidate in self._taken:
            candidate, number = f"{name}_{number}", number + 1
        self._taken.add(candidate)
        return candidate


def _input_channels(node: NodeProto, weight: TensorProto) -> int:
    """Size of axis 1 of the input of a Conv, ConvTranspose or Gemm."""
    if node.op_type == "Gemm":
        return int(weight.dims[1 if attribute(node, "transB", 0) else 0])
    if node.op_type == "ConvTranspose":
        return int(weight.dims[0])
    return int(weight.dims[1] * attribute(node, "group", 1))


def _rename(names: "TensorProto | list[str]", old: str, new: str) -> None:
    for number, name in enumerate(names):
        if name == old:
            names[number] = new


def _drop_unread(
    nodes: list[NodeProto], proto: onnx.ModelProto, graph: GraphIndex
) -> list[NodeProto]:
    """Without the float constants that nobody reads any more, nodes and initializers alike."""
    kept: list[NodeProto] = []
    read = graph.outputs | graph.captured
    for node in reversed(nodes):
        constant = node.op_type in ("Constant", "Identity") and graph.constant(node.output[0])
        if not constant or node.output[0] in read:
            kept.append(node)
            read.update(node.input)
    initializers = [item for item in proto.graph.initializer if item.name in read | graph.inputs]
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(initializers)
    return kept[::-1]
