"""Runs an ONNX model with any of its tensors exposed, and reads and writes ONNX files of any size.

Calibration, the fp16 conversion and layer-by-layer parity all ask the same question: what does this
tensor, in the middle of the graph, hold for these inputs? `ExposedModel` answers it with ONNX
Runtime on the CPU, graph optimizations on, but for those that would saturate there.
"""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import onnx
import onnxruntime
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import TensorProto
from onnxruntime.capi import onnxruntime_pybind11_state as ort_state

from export.cpu import saturates_int8
from export.errors import EngineError, LoadError

PROTOBUF_LIMIT = 2**31 - 1
"""Bytes that one protobuf message can hold; a larger model has its weights in a file beside it."""

_FLOAT_TYPES = frozenset({TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE})
_FOUR_BITS = frozenset({TensorProto.INT4, TensorProto.UINT4})
_INTEGER_OPERATORS = frozenset({"ConvInteger", "MatMulInteger", "QGemm"})
ORT_ERRORS = (
    ort_state.Fail,
    ort_state.InvalidArgument,
    ort_state.InvalidGraph,
    ort_state.InvalidProtobuf,
    ort_state.NoSuchFile,
    ort_state.NotImplemented,
    ort_state.RuntimeException,
)
"""What ONNX Runtime raises; its exceptions share no base class."""


class ExposedModel:
    """An ONNX model that returns the tensors asked for, whatever their place in the graph.

    Args:
        model: a model in memory or its file; neither is changed. External data of a file is read
            by ONNX Runtime itself, from beside the file.
        tensors: names of graph inputs, node outputs or graph outputs, in any order.
        threads: of one operator; 0 lets ONNX Runtime choose.
        folder: where the external data of a model in memory lies; None: it has none.

    Raises:
        EngineError: a name is not a tensor of the model, or ONNX Runtime refuses the model.

    A context manager: leaving it frees the session.
    """

    def __init__(
        self,
        model: onnx.ModelProto | Path,
        tensors: Sequence[str],
        *,
        threads: int = 0,
        folder: Path | None = None,
    ) -> None:
        proto = read_model(model, weights=False) if isinstance(model, Path) else _copy(model)
        inputs = {value.name for value in proto.graph.input}
        self._fetched = [name for name in dict.fromkeys(tensors) if name not in inputs]
        self._echoed = [name for name in dict.fromkeys(tensors) if name in inputs]
        _expose(proto, self._fetched)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        options.enable_mem_pattern = False  # reserves half as much again
        if saturates_int8():  # then Q/DQ are computed as they stand, in float
            options.add_session_config_entry("session.disable_quant_qdq", "1")
        folder = model.parent if isinstance(model, Path) else folder
        self._session: Any = _open_session(proto, options, folder)

    def __call__(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The exposed tensors for `feeds` (one array for every graph input), by name.

        Raises:
            EngineError: a feed is missing, unknown, or of the wrong type or shape; the message is
                ONNX Runtime's.
        """
        if self._session is None:
            raise EngineError("The exposed model is closed; call it inside its with block.")
        try:
            values = self._session.run(self._fetched, dict(feeds)) if self._fetched else []
        except (*ORT_ERRORS, ValueError) as error:
            raise EngineError(f"ONNX Runtime could not run the model on this batch: {error}") from (
                error
            )
        results = {name: np.asarray(feeds[name]) for name in self._echoed}
        return results | dict(zip(self._fetched, values, strict=True))

    def __enter__(self) -> "ExposedModel":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._session = None


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
    graph = onnx.shape_inference.infer_shapes(_without_weights(model)).graph
    return (*graph.value_info, *graph.input, *graph.output)


def read_model(path: Path, *, weights: bool = True) -> onnx.ModelProto:
    """The model of a file, with external data loaded unless `weights` is False.

    Raises:
        LoadError: the file, or its external data, is missing or not ONNX.
    """
    try:
        return onnx.load(path, load_external_data=weights)
    except (OSError, DecodeError, onnx.checker.ValidationError) as error:
        raise LoadError(f"{path} cannot be read as an ONNX model: {error}") from error


def read_opset(path: Path) -> int:
    """The version of ONNX's own operators that a file uses.

    Raises:
        LoadError: the file is not ONNX.
    """
    imports = read_model(path, weights=False).opset_import
    return max((item.version for item in imports if item.domain in ("", "ai.onnx")), default=1)


def external_files(path: Path) -> tuple[Path, ...]:
    """The files beside `path` that hold its external data, by name.

    Raises:
        LoadError: the file is not ONNX, or names data outside its own folder.
    """
    names = set()
    for tensor in read_model(path, weights=False).graph.initializer:
        if tensor.data_location == TensorProto.EXTERNAL:
            names |= {item.value for item in tensor.external_data if item.key == "location"}
    for name in names:
        if Path(name).name != name:
            raise LoadError(f"{path} names external data {name!r}, which is not beside it.")
    return tuple(path.with_name(name) for name in sorted(names))


def write_model(model: onnx.ModelProto, path: Path, *, limit: int = PROTOBUF_LIMIT) -> None:
    """Write `model`; above `limit` bytes its weights go to ``<name>.data`` beside it.

    Missing folders are made. The model is not changed. A file of the same name is replaced.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    data = path.with_name(path.name + ".data")
    data.unlink(missing_ok=True)  # onnx appends to external data that is already there
    if _stored_bytes(model) <= limit:
        onnx.save_model(model, path)
        return
    copy = _copy(model)  # saving external data empties the tensors of what it is given
    onnx.save_model(
        copy, path, save_as_external_data=True, all_tensors_to_one_file=True, location=data.name
    )


def _expose(proto: onnx.ModelProto, names: Sequence[str]) -> None:
    produced = {name for node in proto.graph.node for name in node.output if name}
    unknown = [name for name in names if name not in produced]
    if unknown:
        raise EngineError(
            f"The model has no activation tensor named {', '.join(map(repr, unknown))}; "
            "float_tensors(model) lists those it has."
        )
    declared = {value.name for value in proto.graph.output}
    proto.graph.output.extend(
        onnx.ValueInfoProto(name=name) for name in names if name not in declared
    )


def _open_session(
    proto: onnx.ModelProto, options: onnxruntime.SessionOptions, folder: Path | None
) -> onnxruntime.InferenceSession:
    providers = ["CPUExecutionProvider"]
    try:
        if _stored_bytes(proto) > PROTOBUF_LIMIT:
            with tempfile.TemporaryDirectory() as scratch:
                path = Path(scratch) / "model.onnx"
                write_model(proto, path)
                return onnxruntime.InferenceSession(path, options, providers=providers)
        if folder is not None:
            options.add_session_config_entry(
                "session.model_external_initializers_file_folder_path", str(folder.resolve())
            )
        content = proto.SerializeToString()
        return onnxruntime.InferenceSession(content, options, providers=providers)
    except ORT_ERRORS as error:
        raise EngineError(f"ONNX Runtime cannot open the model: {error}") from error


def _stored_bytes(model: onnx.ModelProto) -> int:
    """Bytes of the serialized message. `ByteSize` itself fails above the limit: weights first."""
    tensors = list(model.graph.initializer)
    tensors += [
        item.t for node in model.graph.node for item in node.attribute if item.HasField("t")
    ]
    weights = sum(len(tensor.raw_data) for tensor in tensors)
    return weights if weights > PROTOBUF_LIMIT else model.ByteSize()


def _copy(model: onnx.ModelProto) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy


def _without_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy that shape inference can serialize: large weights keep only type and shape."""
    if _stored_bytes(model) <= PROTOBUF_LIMIT:
        return model
    light = onnx.ModelProto()
    light.opset_import.extend(model.opset_import)
    light.ir_version = model.ir_version
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
