"""Types and shapes of the tensors of an ONNX model, by ONNX's shape inference."""

from pathlib import Path

import onnx
from onnx import TensorProto

from export.onnx.files import list_weights, read_model

_FLOAT_TYPES = frozenset({TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE})
_FOUR_BITS = frozenset({TensorProto.INT4, TensorProto.UINT4})
_INTEGER_OPERATORS = frozenset({"ConvInteger", "MatMulInteger", "QGemm"})
_FEW_BYTES = 2**16
"""Of weights that shape inference may as well serialize."""


def float_tensors(model: onnx.ModelProto | Path) -> tuple[str, ...]:
    """Names of all float activation tensors: graph inputs and node outputs, in graph order.

    Types come from ONNX shape inference; a tensor whose type it cannot find is left out, and so are
    initializers and the outputs of Constant nodes. The model is not changed.
    """
    proto = read_model(model, weights=False) if isinstance(model, Path) else model
    types = element_types(proto)
    initializers = {tensor.name for tensor in proto.graph.initializer}
    names = [value.name for value in proto.graph.input if value.name not in initializers]
    for node in proto.graph.node:
        if node.op_type != "Constant":
            names.extend(name for name in node.output if name)
    return tuple(name for name in names if types.get(name) in _FLOAT_TYPES)


def element_types(model: onnx.ModelProto) -> dict[str, int]:
    """Element type (`TensorProto.DataType`) of every top-level tensor that inference can type.

    Sequences, maps and optionals have the type `TensorProto.UNDEFINED`.
    """
    types = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    for value in _infer_values(model):
        if value.type.WhichOneof("value"):
            types[value.name] = value.type.tensor_type.elem_type
    return types


def float_ranks(model: onnx.ModelProto) -> dict[str, int]:
    """Rank of every top-level float activation tensor whose shape inference can find."""
    return {name: len(shape) for name, shape in float_shapes(model).items()}


def float_shapes(model: onnx.ModelProto) -> dict[str, tuple[int | None, ...]]:
    """Shape of every top-level float activation tensor of known rank; None: an unknown size."""
    return {
        value.name: tuple(
            dim.dim_value if dim.HasField("dim_value") else None
            for dim in value.type.tensor_type.shape.dim
        )
        for value in _infer_values(model)
        if value.type.tensor_type.elem_type in _FLOAT_TYPES
        and value.type.tensor_type.HasField("shape")
    }


def read_precision(path: Path) -> str:
    """The fewest bits that the graph of a file computes in: int4, int8, fp16, bf16 or fp32.

    Weights count where they are packed in fewer bits than what they are multiplied with.

    Raises:
        LoadError: the file is not ONNX.
    """
    model = read_model(path, weights=False)
    operators = {node.op_type for node in model.graph.node}
    if (bits := _packed_bits(model)) is not None:
        return f"int{bits}"
    if any("QuantizeLinear" in kind or kind in _INTEGER_OPERATORS for kind in operators):
        return "int8"
    if any(kind.startswith("QLinear") for kind in operators):
        return "int8"
    found = set(element_types(model).values())
    halves = {TensorProto.FLOAT16: "fp16", TensorProto.BFLOAT16: "bf16"}
    return next((name for kind, name in halves.items() if kind in found), "fp32")


def _packed_bits(model: onnx.ModelProto) -> int | None:
    """Of the narrowest packed weights: those of MatMulNBits, or 4-bit constants."""
    found = {
        item.i
        for node in model.graph.node
        if node.op_type == "MatMulNBits"
        for item in node.attribute
        if item.name == "bits"
    }
    if any(tensor.data_type in _FOUR_BITS for tensor in model.graph.initializer):
        found.add(4)
    return min(found, default=None)


def _infer_values(model: onnx.ModelProto) -> tuple[onnx.ValueInfoProto, ...]:
    graph = onnx.shape_inference.infer_shapes(without_weights(model)).graph
    return (*graph.value_info, *graph.input, *graph.output)


def without_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """What shape inference can serialize, and fast: `model` where its weights are few.

    Else a copy in which large weights have only type and shape.
    """
    if sum(len(tensor.raw_data) for tensor in list_weights(model)) <= _FEW_BYTES:
        return model
    light = onnx.ModelProto()
    light.opset_import.extend(model.opset_import)
    light.ir_version = model.ir_version
    light.functions.extend(model.functions)
    graph = light.graph
    graph.node.extend(model.graph.node)
    graph.input.extend(model.graph.input)
    graph.output.extend(model.graph.output)
    graph.value_info.extend(model.graph.value_info)
    for tensor in model.graph.initializer:
        if len(tensor.raw_data) > 4096:
            graph.initializer.add(
                name=tensor.name,
                dims=tensor.dims,
                data_type=tensor.data_type,
                data_location=TensorProto.EXTERNAL,
            )
        else:
            graph.initializer.append(tensor)
    return light
