"""Reads and writes ONNX files of any size, and says what is in them."""

from pathlib import Path

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import TensorProto

from export.errors import LoadError
from export.onnx.graph import find_opset

PROTOBUF_LIMIT = 2**31 - 1
"""Bytes that one protobuf message can hold; a larger model has its weights in a file beside it."""


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
    return find_opset(read_model(path, weights=False))


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
    if stored_bytes(model) <= limit:
        onnx.save_model(model, path)
        return
    copy = copy_model(model)  # saving external data empties the tensors of what it is given
    onnx.save_model(
        copy, path, save_as_external_data=True, all_tensors_to_one_file=True, location=data.name
    )


def stored_bytes(model: onnx.ModelProto) -> int:
    """Bytes of the serialized message. `ByteSize` itself fails above the limit: weights first."""
    tensors = list(model.graph.initializer)
    tensors += [
        item.t for node in model.graph.node for item in node.attribute if item.HasField("t")
    ]
    weights = sum(len(tensor.raw_data) for tensor in tensors)
    return weights if weights > PROTOBUF_LIMIT else model.ByteSize()


def copy_model(model: onnx.ModelProto) -> onnx.ModelProto:
    """All of `model` again, to be changed."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy
