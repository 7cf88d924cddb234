"""The int8 layers that recovery works on, and why it leaves others."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from onnx import numpy_helper

from export.artifacts import Skip
from export.errors import QuantizeError
from export.onnx.graph import GraphIndex, attribute, name_node, node_label
from quantize.int8.codes import activation_parameters, has_unsigned_codes
from quantize.placement.matching import WeightUse
from quantize.placement.walk import place
from quantize.recover.patches import PatchLayout, read_layout
from quantize.scheme import QuantScheme


@dataclass(frozen=True)
class InputCodes:
    """How a layer's input is quantized: ``real = scale * (code - zero_point)``."""

    scale: float
    zero_point: int
    unsigned: bool

    def round(self, array: np.ndarray) -> np.ndarray:
        """`array` as the int8 layer sees it, float32."""
        low, high = (0, 255) if self.unsigned else (-128, 127)
        codes = np.rint(array / np.float32(self.scale))
        codes += np.float32(self.zero_point)
        np.clip(codes, low, high, out=codes)
        codes -= np.float32(self.zero_point)
        codes *= np.float32(self.scale)
        return codes.astype(np.float32, copy=False)


@dataclass(frozen=True, eq=False)
class RecoverableLayer:
    """One int8 layer that is a matrix product over patches; its arrays are the float model's.

    Attributes:
        name: of its node.
        label: what to call it in a message.
        source: the float tensor that it reads.
        layout: of its patches.
        weight: as stored.
        bias: one value a channel; None where it has none.
        takes_bias: whether its bias can be replaced.
        codes: of its input.
    """

    name: str
    label: str
    source: str
    layout: PatchLayout
    weight: np.ndarray
    bias: np.ndarray | None
    takes_bias: bool
    codes: InputCodes

    @property
    def bytes(self) -> int:
        """Of its second moments."""
        return 4 * self.layout.groups * self.layout.taps**2


def find_layers(
    graph: GraphIndex, scheme: QuantScheme, ranges: Mapping[str, tuple[float, float]]
) -> tuple[list[RecoverableLayer], list[Skip]]:
    """The int8 layers of a placement, and those of them with what recovery cannot do there.

    Raises:
        QuantizeError: a range is missing, or weights are not finite.
    """
    placement = place(graph, scheme)
    layers: list[RecoverableLayer] = []
    skipped: list[Skip] = []
    for use in placement.weights:
        node = graph.nodes[use.node]
        weight = _array(graph, use.weight)
        if not np.isfinite(weight).all():
            raise QuantizeError(f"The weights of {node_label(node)} hold NaN or infinity.")
        layout = read_layout(node, weight.shape, use.axis)
        if isinstance(layout, str):
            skipped.append(Skip(node_label(node), "recover", layout))
            continue
        activation = placement.activations[node.input[0]]
        if activation.like not in ranges:
            raise QuantizeError(
                f"Tensor {activation.like!r} has no calibrated range; calibrate this very model "
                "again."
            )
        span = ranges[activation.like]
        scale, zero_point = activation_parameters(*span, scheme, activation)
        unsigned = has_unsigned_codes(span[0], scheme, activation)
        bias, reason = _read_bias(graph, use)
        if reason:
            skipped.append(Skip(node_label(node), "bias correction", reason))
        layers.append(
            RecoverableLayer(
                name=name_node(node),
                label=node_label(node),
                source=node.input[0],
                layout=layout,
                weight=weight,
                bias=bias,
                takes_bias=reason is None,
                codes=InputCodes(float(scale), zero_point, unsigned),
            )
        )
    return layers, skipped


def _read_bias(graph: GraphIndex, use: WeightUse) -> tuple[np.ndarray | None, str | None]:
    """The bias, one value a channel (None: there is none), and why it cannot be replaced."""
    node = graph.nodes[use.node]
    if node.op_type == "MatMul":
        return None, "MatMul has no bias"
    if use.bias is None:
        scaled = node.op_type == "Gemm" and attribute(node, "beta", 1.0) != 1.0
        return None, "beta would scale a new bias" if scaled else None
    constant = graph.constant(use.bias)
    if constant is None:
        return None, "its bias is not constant"
    bias = numpy_helper.to_array(constant)
    channels = _array(graph, use.weight).shape[use.axis]
    if bias.size == channels and bias.shape[-1:] == (channels,):
        return bias.reshape(-1), None
    return None, "its bias is not one value a channel"


def _array(graph: GraphIndex, name: str) -> np.ndarray:
    tensor = graph.constant(name)
    assert tensor is not None  # the placement has matched it
    return numpy_helper.to_array(tensor)
