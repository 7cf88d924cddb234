"""Multiply-accumulates and parameters of an ONNX model, per layer and in all. Needs no torch.

One MAC is one multiplication with its addition. Counted are Conv, ConvTranspose, Gemm, MatMul and
the products of LSTM, GRU and RNN; what the rest costs is not arithmetic but memory.
"""

import ast
import math
from collections.abc import Mapping
from dataclasses import dataclass

import onnx

from export.artifacts import BATCH, OnnxModel
from export.onnx.graph import is_standard, name_node, read_source
from export.onnx.sizes import infer_sizes, read_shapes

_THROUGH = frozenset({"DequantizeLinear", "QuantizeLinear", "Cast", "Transpose", "Identity"})
_NOT_WEIGHTS = frozenset({onnx.TensorProto.INT64, onnx.TensorProto.BOOL, onnx.TensorProto.STRING})
_RECURRENT = ("LSTM", "GRU", "RNN")
_SCOPES = "pkg.torch.onnx.name_scopes"

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class LayerCost:
    """One layer, whatever its precision.

    Attributes:
        name: the user's module path where the exporter recorded it, else the node's name.
        op: ONNX operator.
        macs: multiply-accumulates of one run at the bound batch size.
        parameters: elements of its weight and bias.
        node: the ONNX node's name, its first output where it has none.
    """

    name: str
    op: str
    macs: int
    parameters: int
    node: str = ""


@dataclass(frozen=True)
class ModelCost:
    """The counted layers in graph order, and totals over the whole model.

    Attributes:
        layers: those that multiply.
        macs: multiply-accumulates of one run at the bound batch size.
        parameters: elements of all weights, each stored tensor once.
        parameter_bytes: their size as stored.
    """

    layers: tuple[LayerCost, ...]
    macs: int
    parameters: int
    parameter_bytes: int


def model_cost(
    model: OnnxModel | onnx.ModelProto,
    *,
    batch: int = 1,
    axes: Mapping[str, int] | None = None,
) -> ModelCost:
    """Count MACs and parameters of `model` by shape inference with its symbolic axes bound.

    Args:
        model: an axis that is not named below counts as its best size, and as 1 where no range is
            known. Layers whose shapes are not known even so count no MACs.
        batch: size of the batch axis.
        axes: sizes of others by their names.
    """
    proto = _read_proto(model)
    shapes = _infer_shapes(proto, {**_best_sizes(model), BATCH: batch, **(axes or {})})
    sizes = {tensor.name: math.prod(tensor.dims) for tensor in proto.graph.initializer}
    producers = {name: node for node in proto.graph.node for name in node.output}
    layers = tuple(
        _count_layer(node, shapes, sizes, producers)
        for node in proto.graph.node
        if node.op_type in _COUNTERS and is_standard(node)
    )
    weights = _find_weights(proto)
    return ModelCost(
        layers=layers,
        macs=sum(layer.macs for layer in layers),
        parameters=sum(math.prod(tensor.dims) for tensor in weights),
        parameter_bytes=sum(_count_bytes(tensor) for tensor in weights),
    )


def count_row_bytes(
    model: OnnxModel | onnx.ModelProto, *, axes: Mapping[str, int] | None = None
) -> int:
    """Bytes in float32 of the largest value that a run makes of one sample; weights are none.

    Args:
        model: an axis that is not named below counts as in `model_cost`.
        axes: sizes of axes by their names.

    Returns:
        0 where no shape is known.
    """
    proto = _read_proto(model)
    shapes = _infer_shapes(proto, {**_best_sizes(model), BATCH: 1, **(axes or {})})
    made = (name for node in proto.graph.node for name in node.output if node.op_type != "Constant")
    return 4 * max((math.prod(shapes[name]) for name in made if name in shapes), default=0)


def _read_proto(model: OnnxModel | onnx.ModelProto) -> onnx.ModelProto:
    """The model without external weights, to be changed."""
    if isinstance(model, OnnxModel):
        return onnx.load(model.path, load_external_data=False)
    proto = onnx.ModelProto()
    proto.CopyFrom(model)
    return proto


def _count_layer(
    node: onnx.NodeProto,
    shapes: Shapes,
    sizes: dict[str, int],
    producers: dict[str, onnx.NodeProto],
) -> LayerCost:
    try:
        macs = _COUNTERS[node.op_type](node, shapes)
    except KeyError:
        macs = 0
    weights = node.input[1:4] if node.op_type in _RECURRENT else node.input[:3]
    stored = {_find_source(name, producers) for name in weights}
    parameters = sum(sizes.get(name, 0) for name in stored)
    return LayerCost(read_path(node), node.op_type, macs, parameters, name_node(node))


def _count_conv(node: onnx.NodeProto, shapes: Shapes) -> int:
    """Each output element sums over (in / groups) x kernel."""
    return math.prod(shapes[node.output[0]]) * math.prod(shapes[node.input[1]][1:])


def _count_conv_transpose(node: onnx.NodeProto, shapes: Shapes) -> int:
    """Each input element spreads over (out / groups) x kernel."""
    return math.prod(shapes[node.input[0]]) * math.prod(shapes[node.input[1]][1:])


def _count_gemm(node: onnx.NodeProto, shapes: Shapes) -> int:
    transposed = any(a.name == "transA" and a.i for a in node.attribute)
    return math.prod(shapes[node.output[0]]) * shapes[node.input[0]][0 if transposed else 1]


def _count_matmul(node: onnx.NodeProto, shapes: Shapes) -> int:
    return math.prod(shapes[node.output[0]]) * shapes[node.input[0]][-1]


def _count_recurrent(node: onnx.NodeProto, shapes: Shapes) -> int:
    """Each step of each sample multiplies the input, and the state, by all weights."""
    steps = math.prod(shapes[node.input[0]][:2])
    return steps * sum(math.prod(shapes[name]) for name in node.input[1:3])


_COUNTERS = {
    **dict.fromkeys(_RECURRENT, _count_recurrent),
    "Conv": _count_conv,
    "ConvTranspose": _count_conv_transpose,
    "Gemm": _count_gemm,
    "MatMul": _count_matmul,
}


def _best_sizes(model: OnnxModel | onnx.ModelProto) -> dict[str, int]:
    """Of dynamic axes whose ranges are known."""
    specs = model.inputs if isinstance(model, OnnxModel) else ()
    return {name: sizes.best for spec in specs for name, sizes in spec.ranges.items()}


def _infer_shapes(proto: onnx.ModelProto, sizes: Mapping[str, int]) -> Shapes:
    """Shapes of all values that can be known with the inputs' symbolic axes bound."""
    initializers = {tensor.name: tuple(tensor.dims) for tensor in proto.graph.initializer}
    for value in proto.graph.input:
        if value.name in initializers:
            continue
        for dim in value.type.tensor_type.shape.dim:
            if not dim.HasField("dim_value"):
                dim.dim_value = sizes.get(dim.dim_param, 1)
    del proto.graph.value_info[:]
    for value in proto.graph.output:
        value.type.tensor_type.ClearField("shape")
    return initializers | read_shapes(infer_sizes(proto))


def _find_source(name: str, producers: dict[str, onnx.NodeProto]) -> str:
    """The value from which `name` comes through nodes that keep its elements."""
    while name in producers and producers[name].op_type in _THROUGH:
        name = producers[name].input[0]
    return name


def _find_weights(proto: onnx.ModelProto) -> list[onnx.TensorProto]:
    """Stored tensors that are weights, not shapes, nor scales and zero points of Q/DQ."""
    quantization = {
        name
        for node in proto.graph.node
        if node.op_type in ("QuantizeLinear", "DequantizeLinear")
        for name in node.input[1:]
    }
    return [
        tensor
        for tensor in proto.graph.initializer
        if tensor.data_type not in _NOT_WEIGHTS and tensor.name not in quantization
    ]


def _count_bytes(tensor: onnx.TensorProto) -> int:
    """Bytes of the elements, by type; the data itself may stand in another file."""
    elements: int = math.prod(tensor.dims)
    if tensor.data_type in (onnx.TensorProto.INT4, onnx.TensorProto.UINT4):
        return (elements + 1) // 2
    itemsize = int(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize)
    return elements * itemsize


def read_path(node: onnx.NodeProto) -> str:
    """The user's module path where the exporter recorded it, else the node's name and its line."""
    for entry in node.metadata_props:
        if entry.key == _SCOPES:
            scopes = ast.literal_eval(entry.value)[:-1]
            if scopes and scopes[-1]:
                return str(scopes[-1])
    if node.name.startswith("/"):  # the TorchScript exporter writes /stages/0/conv1/Conv
        return ".".join(node.name.strip("/").split("/")[:-1]) or node.name
    name = node.name or (node.output[0] if node.output else node.op_type)
    line = read_source(node)
    return f"{name} ({line})" if line else name
