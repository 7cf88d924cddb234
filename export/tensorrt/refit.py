"""New weights into an engine that was built refittable or without weights. Needs a GPU."""

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

from export.artifacts import OnnxModel
from export.errors import EngineError
from export.tensorrt.building import hash_onnx, write_whole
from export.tensorrt.products import ErrorLog, find_product, import_product, start
from export.tensorrt.record import EngineFile

_REFITTABLE = frozenset({"REFIT", "STRIP_PLAN"})


def refit_engine(engine: EngineFile, model: OnnxModel, path: Path) -> EngineFile:
    """Write to `path` the engine with the weights of `model`, which has the same graph.

    Args:
        engine: built with ``refittable`` or ``stripped``.
        model: the graph that it was built from, with other weights of the same shapes.
        path: the file to write; the engine's own is allowed.

    Raises:
        EngineError: the engine holds its weights fast, no GPU opens it, or a weight is missing or
            of another shape; the message names those that are.
    """
    record = engine.record
    if not _REFITTABLE & set(record.flags):
        raise EngineError(
            f"{engine.path.name} was built with its weights for good. Build it with the refittable "
            "or the stripped option."
        )
    product = find_product(record.product)
    trt = import_product(product)
    log = ErrorLog(trt)
    runtime = start(product, trt.Runtime, log)
    opened = runtime.deserialize_cuda_engine(engine.path.read_bytes())
    if opened is None:
        raise EngineError(f"{product.title} cannot open {engine.path.name}: {log.explain()}")
    refitter = trt.Refitter(opened, log.logger)
    parser = trt.OnnxParserRefitter(refitter, log.logger)
    if not parser.refit_from_file(str(model.path)) or not refitter.refit_cuda_engine():
        raise EngineError(_explain(product.title, model.path, refitter, log))
    write_whole(path, _serialize(trt, opened))
    flags = tuple(flag for flag in record.flags if flag != "STRIP_PLAN")
    fresh = replace(
        record,
        flags=flags if "REFIT" in flags else (*flags, "REFIT"),
        onnx_sha256=hash_onnx(model.path),
        engine_sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
    )
    return EngineFile(path, fresh)


def _serialize(trt: Any, engine: Any) -> Any:
    """The engine with its weights, so that it can be refitted again."""
    config = engine.create_serialization_config()
    config.clear_flag(trt.SerializationFlag.EXCLUDE_WEIGHTS)
    refittable = getattr(trt.SerializationFlag, "INCLUDE_REFIT", None)  # TensorRT 10.13 has it not
    if refittable is not None:
        config.set_flag(refittable)
    return engine.serialize_with_config(config)


def _explain(title: str, model: Path, refitter: Any, log: ErrorLog) -> str:
    missing = [name for name in refitter.get_missing_weights() if name]
    if missing:
        return (
            f"{title} misses weights of {model.name}: {', '.join(missing)}. The graph must be the "
            "one that the engine was built from."
        )
    return f"{title} cannot take the weights of {model.name}: {log.explain()}"
