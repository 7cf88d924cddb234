"""Constant weights and biases as int8 and int32 codes with a DequantizeLinear behind them."""

import hashlib

import numpy as np
from onnx import helper, numpy_helper

from export.errors import QuantizeError
from export.onnx.graph import node_label
from quantize.editing import GraphEdit
from quantize.int8.adjustments import LayerAdjustment
from quantize.int8.codes import smallest_scales, weight_scales
from quantize.placement.matching import WeightUse
from quantize.scheme import QuantScheme

NO_BIAS = 2.0**-100
"""Nothing beside any activation, and yet not zero."""


class WeightCodes:
    """Puts weights into codes, those that several operators share only once.

    Args:
        edit: of the graph that holds the weights.
        scheme: how they are stored.
    """

    def __init__(self, edit: GraphEdit, scheme: QuantScheme) -> None:
        self._edit, self._graph, self._scheme = edit, edit.graph, scheme
        self._stored: dict[tuple[str, int, bytes], str] = {}

    def store(self, use: WeightUse, activation_scale: float, layer: LayerAdjustment | None) -> None:
        """Let the operator of `use` read its weights, and its bias, as codes.

        Args:
            use: the operator and its constant operands.
            activation_scale: of the data that it reads, by which an integer bias is scaled.
            layer: codes, scales and bias that were chosen for it; None: rounded to nearest.

        Raises:
            QuantizeError: the weights hold NaN or infinity.
        """
        node = self._graph.nodes[use.node]
        weight = self._read(use.weight)
        if not np.isfinite(weight).all():
            raise QuantizeError(f"The weights of {node_label(node)} hold NaN or infinity.")
        bias = self._read(use.bias) if use.bias and self._scheme.integer_bias else None
        if layer is not None and layer.bias is not None:
            bias = layer.bias
        if self._scheme.biases_shared_results and self._loses_its_scale(use, bias):
            bias = np.full(weight.shape[use.axis], NO_BIAS, np.float32)
        codes, scales = self._encode(weight, use, bias, activation_scale, layer)
        node.input[1] = self._dequantize(use.weight, codes, scales, use.axis)
        if bias is None:
            return
        name = use.bias or f"{use.weight}_bias"
        if self._scheme.integer_bias:
            unit = (np.float32(activation_scale) * scales).astype(np.float32)
            integers = np.rint(bias / unit.astype(np.float64)).astype(np.int32)
            name = self._dequantize(name, integers, unit, 0)
        else:
            name = self._edit.store(name, bias)
        node.input[2:] = [name]

    def _loses_its_scale(self, use: WeightUse, bias: np.ndarray | None) -> bool:
        """Whether it is a convolution that several read and that adds nothing to its products."""
        node, graph = self._graph.nodes[use.node], self._graph
        read = graph.readers[node.output[0]]
        if node.op_type != "Conv" or not read or graph.only_reader(node.output[0]) is not None:
            return False
        if bias is None and use.bias is not None:
            stored = graph.constant(use.bias)
            return stored is not None and not numpy_helper.to_array(stored).any()
        return bias is None or not bias.any()

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

    def _dequantize(self, name: str, codes: np.ndarray, scales: np.ndarray, axis: int) -> str:
        """Name of the dequantized constant; one copy for all who want the same codes."""
        digest = hashlib.sha256(codes.tobytes()).digest()
        key = (name, axis, scales.tobytes() + digest)
        if key not in self._stored:
            inputs = [
                self._edit.store(f"{name}_quantized", codes),
                self._edit.store(f"{name}_scale", scales),
                self._edit.store(f"{name}_zero_point", np.zeros(scales.shape, codes.dtype)),
            ]
            self._stored[key] = self._edit.name(f"{name}_dequantized")
            self._edit.lead(
                helper.make_node(
                    "DequantizeLinear",
                    inputs,
                    [self._stored[key]],
                    name=f"{self._stored[key]}_DequantizeLinear",
                    axis=axis,
                )
            )
        return self._stored[key]

    def _read(self, name: str) -> np.ndarray:
        tensor = self._graph.constant(name)
        assert tensor is not None  # the placement has matched it
        return numpy_helper.to_array(tensor)
