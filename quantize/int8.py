"""ONNX float32 → ONNX with QuantizeLinear and DequantizeLinear around what runs in int8.

``real = scale * (code - zero_point)``, uint8 or int8 codes (Jacob et al., "Quantization and
Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference", CVPR 2018). Weights
are stored as int8 with a DequantizeLinear behind them, so the file shrinks as well.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from export.artifacts import OnnxModel, Skip
from export.errors import NothingToQuantizeError, QuantizeError
from export.execute import read_model, write_model
from quantize.calibrate import Ranges
from quantize.placement import ActivationUse, GraphIndex, Placement, WeightUse, node_label, place
from quantize.pooling import use_global_pooling
from quantize.scheme import QuantScheme

MIN_OPSET = 13
"""The first opset whose DequantizeLinear has an axis."""

SMALLEST_SCALE = 2.0**-60
"""Below it a range counts as 0; the product of two scales is still a normal float32."""

_BIAS_LIMIT = 2.0**31 - 2.0**8
_DEAD_CHANNEL_BIAS_CODE = 2.0**23


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


def quantize_int8(model: OnnxModel, ranges: Ranges, scheme: QuantScheme, path: Path) -> Int8Result:
    """Write `model` with Q/DQ for the target of `scheme` to `path`.

    Args:
        model: the float model; its file is not changed.
        ranges: from `calibrate` on the same model.
        scheme: one of `quantize.scheme.PRESETS`, or one made from it.
        path: the file to write; not `model.path`.

    Raises:
        NothingToQuantizeError: the model has nothing that runs in int8 on this target.
        QuantizeError: the opset is below 13, a range is missing, or `path` is the model itself.
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
    known = dict(ranges.ranges)
    known |= {new: known[old] for new, old in twins.items() if old in known}
    _Rewriter(proto, graph, placement, scheme).rewrite(known)
    write_model(proto, path)
    names = (graph.nodes[number] for number in sorted(placement.int8))
    return Int8Result(
        replace(model, path=path),
        tuple(node.name or node.output[0] for node in names),
        tuple(placement.skipped),
    )


def activation_parameters(
    low: float, high: float, scheme: QuantScheme, use: ActivationUse | None = None
) -> tuple[np.float32, int]:
    """(scale, zero point) of an activation whose values span `low` to `high`.

    Zero is always representable. A tensor that is 0 throughout gets the scale of the range 0 to 1.
    """
    low, high = min(low, 0.0), max(high, 0.0)
    if use is not None and use.from_zero:
        low = 0.0
    if use is not None and use.ceiling is not None:
        high = min(high, use.ceiling)
    if scheme.unsigned_activations:
        scale = (high - low) / 255
        if scale < SMALLEST_SCALE:
            return np.float32(1 / 255), 0
        rounded = np.float32(scale)
        if use is not None and use.ceiling is not None and float(rounded) * 255 > use.ceiling:
            rounded = np.nextafter(rounded, np.float32(0))  # the code 255 must not pass Clip's end
        return rounded, int(np.clip(np.rint(-low / scale), 0, 255))
    scale = max(-low, high) / 127
    return np.float32(scale if scale >= SMALLEST_SCALE else 1 / 127), 0


def weight_scales(
    weight: np.ndarray, axis: int, bias: np.ndarray | None, activation_scale: float
) -> np.ndarray:
    """Symmetric int8 scales of the channels of `weight` along `axis`, float32, never 0.

    With `bias` (one value a channel) the scales are raised where the int32 code of the bias, in
    units of ``activation_scale * scale``, would overflow; a channel of zeros takes its scale from
    its bias.
    """
    others = tuple(number for number in range(weight.ndim) if number != axis)
    scales = np.abs(weight).max(axis=others).astype(np.float64) / 127
    dead = scales < SMALLEST_SCALE
    scales[dead] = 1 / 127
    if bias is not None:
        magnitude = np.abs(bias.astype(np.float64)) / activation_scale
        from_bias = dead & (magnitude > 0)
        scales[from_bias] = magnitude[from_bias] / _DEAD_CHANNEL_BIAS_CODE
        scales = np.maximum(scales, magnitude / _BIAS_LIMIT)
    result: np.ndarray = np.maximum(scales, SMALLEST_SCALE).astype(np.float32)
    return result


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

    def rewrite(self, ranges: Mapping[str, tuple[float, float]]) -> None:
        """Change the model in place."""
        scales = {name: self._parameters(name, ranges) for name in self._placement.activations}
        originals = {
            number: node.input[0] for number, node in enumerate(self._graph.nodes) if node.input
        }
        for use in self._placement.weights:
            self._store_weights(use, float(scales[originals[use.node]][0]))
        produced = [list(node.output) for node in self._graph.nodes]
        pairs = {name: self._pair(name, *scales[name]) for name in self._placement.activations}
        body = [node for name, pair in pairs.items() if name in self._graph.inputs for node in pair]
        for node, names in zip(self._graph.nodes, produced, strict=True):
            body.append(node)
            for name in names:
                body.extend(pairs.get(name, ()))
        del self._proto.graph.node[:]
        self._proto.graph.node.extend(_drop_unread(self._head + body, self._proto, self._graph))

    def _parameters(
        self, name: str, ranges: Mapping[str, tuple[float, float]]
    ) -> tuple[np.float32, int]:
        use = self._placement.activations[name]
        if use.like not in ranges:
            raise QuantizeError(
                f"Tensor {use.like!r} has no calibrated range; calibrate this very model again."
            )
        return activation_parameters(*ranges[use.like], self._scheme, use)

    def _pair(self, name: str, scale: np.float32, zero_point: int) -> list[NodeProto]:
        """Q and DQ for one activation; moves its readers to the dequantized tensor."""
        kind = np.uint8 if self._scheme.unsigned_activations else np.int8
        parameters = [
            self._initializer(f"{name}_scale", np.asarray(scale, np.float32)),
            self._initializer(f"{name}_zero_point", np.asarray(zero_point, kind)),
        ]
        use = self._placement.activations[name]
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

    def _store_weights(self, use: WeightUse, activation_scale: float) -> None:
        node = self._graph.nodes[use.node]
        weight = self._array(use.weight)
        bias = self._array(use.bias) if use.bias and self._scheme.integer_bias else None
        if not np.isfinite(weight).all():
            raise QuantizeError(f"The weights of {node_label(node)} hold NaN or infinity.")
        scales = weight_scales(weight, use.axis, bias, activation_scale)
        shape = [-1 if axis == use.axis else 1 for axis in range(weight.ndim)]
        codes = np.clip(np.rint(weight / scales.reshape(shape)), -127, 127).astype(np.int8)
        node.input[1] = self._dequantized(use.weight, codes, scales, use.axis)
        if bias is not None and use.bias:
            unit = (np.float32(activation_scale) * scales).astype(np.float32)
            node.input[2] = self._dequantized(
                use.bias, np.rint(bias / unit.astype(np.float64)).astype(np.int32), unit, 0
            )

    def _dequantized(self, name: str, codes: np.ndarray, scales: np.ndarray, axis: int) -> str:
        """Name of the dequantized constant; one copy for all who want the same codes."""
        key = (name, axis, scales.tobytes())
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
