"""Runs an ONNX model with any of its tensors exposed.

Calibration, the fp16 conversion and layer-by-layer parity all ask the same question: what does this
tensor, in the middle of the graph, hold for these inputs? `ExposedModel` answers it with ONNX
Runtime on the CPU, graph optimizations on, but for those that would saturate there.
"""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as ort_state

from export.cpu import saturates_int8
from export.errors import EngineError
from export.onnx.files import copy_model, read_model, serialize_model, write_model

ORT_ERRORS = (
    ort_state.EPFail,
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
        proto = read_model(model, weights=False) if isinstance(model, Path) else copy_model(model)
        inputs = {value.name for value in proto.graph.input}
        self._fetched = [name for name in dict.fromkeys(tensors) if name not in inputs]
        self._echoed = [name for name in dict.fromkeys(tensors) if name in inputs]
        changed = _expose(proto, self._fetched)
        same_file = isinstance(model, Path) and not changed  # and nothing to serialize
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        options.enable_mem_pattern = False  # reserves half as much again
        if saturates_int8():  # then Q/DQ are computed as they stand, in float
            options.add_session_config_entry("session.disable_quant_qdq", "1")
        folder = model.parent if isinstance(model, Path) else folder
        self._session: Any = _open_session(model if same_file else proto, options, folder)

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

    def __exit__(self, *error: object) -> None:
        self._session = None


def _expose(proto: onnx.ModelProto, names: Sequence[str]) -> bool:
    """Whether any of them was no output before."""
    produced = {name for node in proto.graph.node for name in node.output if name}
    unknown = [name for name in names if name not in produced]
    if unknown:
        raise EngineError(
            f"The model has no activation tensor named {', '.join(map(repr, unknown))}; "
            "float_tensors(model) lists those it has."
        )
    declared = {value.name for value in proto.graph.output}
    added = [onnx.ValueInfoProto(name=name) for name in names if name not in declared]
    proto.graph.output.extend(added)
    return bool(added)


def _open_session(
    model: onnx.ModelProto | Path, options: onnxruntime.SessionOptions, folder: Path | None
) -> onnxruntime.InferenceSession:
    providers = ["CPUExecutionProvider"]
    try:
        if isinstance(model, Path):
            return onnxruntime.InferenceSession(model, options, providers=providers)
        content = serialize_model(model)
        if content is None:
            with tempfile.TemporaryDirectory() as scratch:
                path = Path(scratch) / "model.onnx"
                write_model(model, path)
                return onnxruntime.InferenceSession(path, options, providers=providers)
        if folder is not None:
            options.add_session_config_entry(
                "session.model_external_initializers_file_folder_path", str(folder.resolve())
            )
        return onnxruntime.InferenceSession(content, options, providers=providers)
    except ORT_ERRORS as error:
        raise EngineError(f"ONNX Runtime cannot open the model: {error}") from error
