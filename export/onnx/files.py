"""Reads and writes ONNX files of any size, and says what is in them."""

from pathlib import Path

import onnx
from google.protobuf.message import DecodeError, EncodeError  # type: ignore[import-untyped]
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
    content = serialize_model(model, limit=limit)
    if content is not None:
        path.write_bytes(content)
        return
    copy = copy_model(model)  # saving external data empties the tensors of what it is given
    onnx.save_model(
        copy, path, save_as_external_data=True, all_tensors_to_one_file=True, location=data.name
    )


def serialize_model(model: onnx.ModelProto, *, limit: int = PROTOBUF_LIMIT) -> bytes | None:
    """The message of `model`; None where it is larger than `limit` bytes.

    To ask for its size alone would serialize it as well.
    """
    if sum(len(tensor.raw_data) for tensor in list_weights(model)) > limit:
        return None
    try:
        content: bytes = model.SerializeToString()
    except EncodeError:  # what is not a weight makes it larger than a message can be
        return None
    return content if len(content) <= limit else None


def list_weights(model: onnx.ModelProto) -> list[TensorProto]:
    """The constants of the main graph: initializers, and tensors that are attributes of nodes."""
    return list(model.graph.initializer) + [
        item.t for node in model.graph.node for item in node.attribute if item.HasField("t")
    ]


def copy_model(model: onnx.ModelProto) -> onnx.ModelProto:
    """All of `model` again, to be changed."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy
