"""Model and batches → the range of every tensor that a placement may quantize.

Memory does not grow with the number of samples: each batch is run, observed and dropped.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from export.artifacts import OnnxModel
from export.errors import ConfigError, DataError, NothingToQuantizeError, QuantizeError
from export.execute import ExposedModel, read_model
from export.progress import Progress, ProgressCallback, ignore_progress
from quantize.observers import OBSERVERS
from quantize.placement import GraphIndex, tensors_to_calibrate
from quantize.pooling import use_global_pooling


@dataclass(frozen=True)
class Ranges:
    """What calibration saw.

    Attributes:
        observer: its name.
        samples: how many samples were run.
        ranges: tensor name → (low, high), in the tensor's unit.
    """

    observer: str
    samples: int
    ranges: Mapping[str, tuple[float, float]]


def calibrate(
    model: OnnxModel,
    batches: Iterable[Mapping[str, np.ndarray]],
    *,
    observer: str = "minmax",
    tensors: Collection[str] | None = None,
    total: int = 0,
    progress: ProgressCallback = ignore_progress,
    threads: int = 0,
) -> Ranges:
    """Run `model` on every batch and observe its tensors.

    Args:
        model: the float model; its file is read, never written.
        batches: one mapping a batch, an array for every graph input; consumed once, as a stream.
        observer: a key of `quantize.observers.OBSERVERS`.
        tensors: what to observe; None for all that any rule table may quantize, so that one
            calibration serves every placement. The fp16 conversion wants
            ``export.execute.float_tensors(model.path)``.
        total: number of samples, for the progress report; 0 when it is not known.
        progress: called after each batch with ``Progress("calibrate", samples done, total)``.
        threads: of ONNX Runtime; 0 lets it choose.

    Raises:
        QuantizeError: nothing to observe, no batches, or a NaN or infinite value (the message
            names the tensor and the sample).
        ConfigError: `observer` is not known.
        DataError: a batch without samples, or whose inputs disagree on the number of samples.
        EngineError: ONNX Runtime refuses the model or a batch.
    """
    if observer not in OBSERVERS:
        raise ConfigError(f"observer {observer!r} is not known; use one of {', '.join(OBSERVERS)}.")
    if tensors is None:
        proto = read_model(model.path)
        twins = use_global_pooling(proto)  # as the int8 graphs will be
        names = tensors_to_calibrate(GraphIndex(proto))
        tensors = tuple(dict.fromkeys(twins.get(name, name) for name in names))
    if not tensors:
        raise NothingToQuantizeError(
            f"{model.path.name} has nothing to quantize: no Conv, Gemm or MatMul with constant "
            "float32 weights."
        )
    observers = {name: OBSERVERS[observer](name) for name in tensors}
    done = 0
    with ExposedModel(model.path, tuple(tensors), threads=threads) as exposed:
        for batch in batches:
            samples = range(done, done + _batch_size(model, batch))
            for name, array in exposed(batch).items():
                observers[name].update(array, samples)
            done = samples.stop
            progress(Progress("calibrate", done, total))
    if not done:
        raise QuantizeError(
            "No calibration batches: nothing is known about the activations. Pass at least one "
            "batch of real inputs."
        )
    return Ranges(observer, done, {name: item.range() for name, item in observers.items()})


def _batch_size(model: OnnxModel, batch: Mapping[str, np.ndarray]) -> int:
    """Size of the batch axis: of the inputs that have one by signature, else of the first input."""
    names = [spec.name for spec in model.inputs if spec.has_dynamic_batch] or list(batch)[:1]
    sizes = {name: batch[name].shape[0] for name in names if name in batch and batch[name].ndim}
    if not sizes or 0 in sizes.values():
        raise DataError("A calibration batch holds no samples.")
    if len(set(sizes.values())) > 1:
        raise DataError(
            "The inputs of one calibration batch have different numbers of samples: "
            + ", ".join(f"{name} has {size}" for name, size in sizes.items())
        )
    return int(next(iter(sizes.values())))
