"""OnnxModel → EngineFile with TensorRT for RTX, which parses and builds without a GPU.

Precision lives in the ONNX graph alone: TensorRT is strongly typed, so fp16 comes in as Casts and
int8 as Q/DQ. What is built here is for the given compute capabilities; running it needs such a GPU.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from export.artifacts import BATCH, EngineFile, OnnxModel, TensorSpec
from export.errors import EngineError
from export.optional import require
from export.tensorrt.messages import explain_parser
from export.tensorrt.options import DEFAULT_TARGETS

PRODUCT = "TensorRT for RTX"


@dataclass(frozen=True)
class BatchProfile:
    """The batch sizes that one engine takes: least, the one it is tuned for, and most."""

    least: int = 1
    best: int = 8
    most: int = 16


def build_engine(
    model: OnnxModel,
    path: Path,
    *,
    precision: str,
    profile: BatchProfile | None = None,
    targets: tuple[str, ...] = DEFAULT_TARGETS,
) -> EngineFile:
    """Build `model` into a serialized engine at `path`.

    Args:
        model: float32, fp16 by Casts, or int8 by Q/DQ with zero point 0 and float biases.
        path: the file to write; written last, so a failure leaves none.
        precision: what the graph holds, for the record.
        profile: sizes of the dynamic batch axis; the default is 1, 8, 16.
        targets: compute capabilities by TensorRT's names (``SM89``).

    Raises:
        MissingExtraError: tensorrt_rtx is not installed.
        EngineError: the parser or the builder refuses the model; the message has the nodes.
    """
    trt = require("tensorrt_rtx", extra="rtx")
    logger = _make_logger(trt)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(model.path)):
        raise EngineError(explain_parser(PRODUCT, parser, model.path))
    config = builder.create_builder_config()
    config.num_compute_capabilities = len(targets)
    for index, target in enumerate(targets):
        config.set_compute_capability(_compute_capability(trt, target), index)
    dynamic = [spec for spec in model.inputs if _is_dynamic(spec)]
    if dynamic:
        config.add_optimization_profile(_make_profile(builder, dynamic, profile or BatchProfile()))
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        reason = "; ".join(logger.errors) or "no reason given"
        raise EngineError(f"{PRODUCT} cannot build {model.path.name}: {reason}")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(plan))
    return EngineFile(path, "tensorrt_rtx", precision, ",".join(targets))


def _make_logger(trt: Any) -> Any:
    """A logger that keeps errors for the message and prints nothing."""

    class Logger(trt.ILogger):  # type: ignore[misc]  # the base class is known only at run time
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self.errors.append(message.strip())

    return Logger()


def _compute_capability(trt: Any, target: str) -> Any:
    members = trt.ComputeCapability.__members__
    if target not in members:
        known = ", ".join(name for name in members if name.startswith("SM"))
        raise EngineError(f"TensorRT for RTX has no target {target!r}; it has {known}.")
    return members[target]


def _is_dynamic(spec: TensorSpec) -> bool:
    return any(isinstance(size, str) for size in spec.shape)


def _make_profile(builder: Any, specs: list[TensorSpec], sizes: BatchProfile) -> Any:
    profile = builder.create_optimization_profile()
    for spec in specs:
        if any(isinstance(size, str) and size != BATCH for size in spec.shape):
            raise EngineError(f"Input {spec} has a dynamic axis other than the batch.")
        shapes = (spec.with_batch(size) for size in (sizes.least, sizes.best, sizes.most))
        profile.set_shape(spec.name, *shapes)
    return profile
