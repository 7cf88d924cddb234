"""The configuration of a model in Triton, from what a bundle knows of it.

Triton takes the batch apart from ``dims``, and only where every input and output has it in front:
then ``max_batch_size`` is set and requests are batched. Everywhere else (a batch that was fixed
when the model was exported, or that lies on another axis) it is 0 and ``dims`` are whole shapes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from deploy.bundle.folder import Bundle
from deploy.datatypes import name_datatype
from deploy.engines.base import Array, Feeds
from deploy.engines.device import needs_gpu
from deploy.engines.onnxruntime_cuda import choose_options
from deploy.exports.prototext import Word, render_message
from export.artifacts import TensorSpec
from export.errors import BundleError

ENGINE_TAG = "deploykit_engine"
"""The tag of Triton's metrics, and the key in the configuration it shows, that has the engine."""

_PROVIDER_OPTIONS = ("use_tf32", "cudnn_conv_algo_search", "arena_extend_strategy")


@dataclass(frozen=True)
class Batching:
    """Rows of one execution; `most` is 0 where the model takes its shapes as they are."""

    most: int
    preferred: tuple[int, ...] = ()


@dataclass(frozen=True)
class WarmUp:
    """A request that Triton makes before the model is ready.

    Attributes:
        rows: its batch; the sample is repeated to fill it.
        arrays: by input, one sample without the batch, or all where the model is not batched.
    """

    name: str
    rows: int
    arrays: Mapping[str, Array]

    def file(self, name: str) -> str:
        """The file, under ``warmup/``, with the raw bytes of the input `name`."""
        return f"{self.name}.{list(self.arrays).index(name)}.raw"


@dataclass(frozen=True)
class TritonModel:
    """One version of one model in a repository, before anything is written.

    Attributes:
        engine: of the bundle.
        backend: Triton's.
    """

    bundle: Bundle
    engine: str
    backend: str
    name: str
    version: int

    @property
    def file(self) -> str:
        """The engine's file, relative to the bundle."""
        return self.bundle.manifest.engines[self.engine].file

    @property
    def kind(self) -> str:
        """Where the engine was measured, or is to run, as Triton calls it."""
        return "KIND_GPU" if needs_gpu(self.bundle.manifest.engines[self.engine]) else "KIND_CPU"


def choose_batching(model: TritonModel) -> Batching:
    """The largest batch that the engine takes or was checked with, and the sizes it is made for.

    An engine of TensorRT takes what its profiles allow and is tuned for a size in each of them.
    ONNX Runtime has no such size: preferred is the one that the build measured, unless that is 1.
    """
    manifest = model.bundle.manifest
    if not all(spec.has_dynamic_batch for spec in (*manifest.inputs, *manifest.outputs)):
        return Batching(0)
    profiles = _read_profiles(model)
    if profiles:
        sizes = {size for _, *sizes in profiles for size in sizes}
        return Batching(max(sizes), tuple(sorted(sizes - {1})))
    report = model.bundle.report()
    measured = report["measurement"]["batch"]
    parities = [c["parity"] for c in report["candidates"] if c["name"] == model.engine]
    checked = [size for parity in parities if parity for size in parity["batches_checked"]]
    return Batching(max([measured, *checked]), (measured,) if measured > 1 else ())


def _read_profiles(model: TritonModel) -> list[tuple[int, ...]]:
    """Least, best and greatest batch of each profile that an engine was built with, if it was."""
    record: Any = getattr(model.bundle.manifest.engines[model.engine], "record", None)
    first = model.bundle.manifest.inputs[0].name
    profiles = () if record is None else record.profiles
    return [tuple(shape[0] for shape in profile.shapes[first]) for profile in profiles]


def plan_warmups(golden: Feeds, batching: Batching) -> tuple[WarmUp, ...]:
    """A request for one row, for every preferred size and for the largest.

    Each has another golden sample, which Triton repeats to fill the batch.
    """
    if not batching.most:
        return (WarmUp("golden", 1, golden),)
    samples = len(next(iter(golden.values())))
    sizes = sorted({1, *batching.preferred, batching.most})
    return tuple(
        WarmUp(f"golden_{rows}", rows, {key: golden[key][index % samples] for key in golden})
        for index, rows in enumerate(sizes)
    )


def render_signature(model: TritonModel, batching: Batching) -> str:
    """What all versions of a model share: backend, inputs, outputs and batching."""
    manifest = model.bundle.manifest
    fields = {
        "name": model.name,
        "backend": model.backend,
        "max_batch_size": batching.most,
        "input": [_describe(spec, batching) for spec in manifest.inputs],
        "output": [_describe(spec, batching) for spec in manifest.outputs],
    }
    return render_message(fields)


def render_config(model: TritonModel, batching: Batching, warmups: tuple[WarmUp, ...]) -> str:
    """The text of ``config.pbtxt``."""
    fields: dict[str, Any] = {
        "default_model_filename": model.file.rpartition("/")[2],
        "version_policy": {"specific": {"versions": [model.version]}},
        "instance_group": [{"count": 1, "kind": Word(model.kind)}],
    }
    accelerators = _accelerate(model)
    if accelerators:
        fields["optimization"] = {"execution_accelerators": accelerators}
    if batching.most:
        fields["dynamic_batching"] = {"preferred_batch_size": list(batching.preferred)}
    fields["model_warmup"] = [_describe_warmup(warmup) for warmup in warmups]
    fields["metric_tags"] = [{"key": ENGINE_TAG, "value": model.engine}]
    return render_signature(model, batching) + render_message(fields)


def _accelerate(model: TritonModel) -> dict[str, Any]:
    """Options of ONNX Runtime's CUDA provider that the engine was judged and measured with.

    Triton's own would compute float32 in TF32, and try all algorithms of a convolution at each new
    size of a batch, for which requests would wait.
    """
    entry = model.bundle.manifest.engines[model.engine]
    if entry.engine != "onnxruntime" or not needs_gpu(entry):
        return {}
    options = choose_options(model.bundle.spec(model.engine))
    parameters = [{"key": key, "value": options[key]} for key in _PROVIDER_OPTIONS]
    return {"gpu_execution_accelerator": [{"name": "cuda", "parameters": parameters}]}


def _describe(spec: TensorSpec, batching: Batching) -> dict[str, Any]:
    sizes = spec.shape[1:] if batching.most else spec.shape
    dims = [size if isinstance(size, int) else -1 for size in sizes]
    described = {"name": spec.name, "data_type": _datatype(spec.dtype, spec.name)}
    return {**described, "dims": dims} if dims else {**described, "dims": [1], "reshape": {}}


def _describe_warmup(warmup: WarmUp) -> dict[str, Any]:
    inputs = [
        {
            "key": name,
            "value": {
                "data_type": _datatype(str(array.dtype), name),
                "dims": list(array.shape) or [1],
                "input_data_file": warmup.file(name),
            },
        }
        for name, array in warmup.arrays.items()
    ]
    return {"name": warmup.name, "batch_size": warmup.rows, "inputs": inputs}


def _datatype(dtype: str, name: str) -> Word:
    try:
        return Word(f"TYPE_{name_datatype(dtype)}")
    except KeyError as error:
        raise BundleError(f"Tensor {name!r}: Triton has no dtype {dtype}.") from error
