"""What runs in place of an engine that was built for another machine.

An engine of TensorRT that does not fit is built again from the ONNX file that the bundle keeps
beside it, into a folder outside the bundle, which stays as it was hashed; or the bundle's float32
model runs in ONNX Runtime, on the GPU where that is to be had, as it does in place of an engine of
ONNX Runtime for the GPU. What has not yet run in this very process is tried in a child first: a
library that ends its process must not end the caller's.
"""

import json
import os
import shutil
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from deploy.bundle.folder import FALLBACK, Bundle
from deploy.bundle.golden import find_mismatch
from deploy.bundle.plugin_files import locate_plugins
from deploy.bundle.preflight import Host, explain_mismatch, read_host
from deploy.cache import hash_parts, open_cache
from deploy.engines import EngineSpec
from deploy.engines.device import CUDA, explain_no_cuda, is_for_gpu, runs_on_gpu
from deploy.engines.onnxruntime_cuda import explain_no_provider
from deploy.engines.process import EngineProcess, call_in_child
from export.artifacts import OnnxModel
from export.errors import DeployError, EngineError
from export.onnx.files import read_opset
from export.optional import require
from export.tensorrt.building import hash_onnx
from export.tensorrt.options import BuildOptions
from export.tensorrt.products import PRODUCTS
from export.tensorrt.record import EngineFile, EngineRecord

_ENGINE, _RECORD = "model.engine", "record.json"


@dataclass(frozen=True)
class Substitution:
    """What may take the place of an engine for GPUs that does not run on this machine.

    Attributes:
        rebuild: one of TensorRT, built again from the bundle's ONNX file into the user's cache.
        fallback: another engine of the bundle; without, an engine that does not run is an error.
    """

    rebuild: bool = False
    fallback: bool = True


AS_THEY_ARE = Substitution()
"""Nothing is built again, and what does not run gives way to the rest."""


@dataclass(frozen=True)
class Rebuilt:
    """An engine that was built again, and a sentence that says so."""

    spec: EngineSpec
    note: str


def settle_unfit(
    bundle: Bundle, substitution: Substitution, *, threads: int = 0
) -> tuple[dict[str, Rebuilt], dict[str, DeployError]]:
    """Of the engines for GPUs that do not fit this machine: those built again, and the rest.

    Raises:
        EngineError: one of the rest, where nothing may take its place.
    """
    host = read_host()
    rebuilt: dict[str, Rebuilt] = {}
    lost: dict[str, DeployError] = {}
    for name in bundle.manifest.engines:
        reason = explain_unfit(bundle, name, host)
        if reason is None:
            continue
        lost[name] = EngineError(reason)
        if substitution.rebuild and bundle.manifest.engines[name].engine in PRODUCTS:
            try:
                rebuilt[name] = rebuild_runnable(bundle, bundle.spec(name, threads=threads), host)
                del lost[name]
            except DeployError as error:
                lost[name] = error
        if name in lost and not substitution.fallback:
            raise lost[name]
    return rebuilt, lost


def rebuild_runnable(bundle: Bundle, spec: EngineSpec, host: Host | None = None) -> Rebuilt:
    """An engine of TensorRT, built again for this machine, once it has repeated its answers.

    Raises:
        EngineError: it cannot be built here, or does not run either; the message says why it was
            needed.
    """
    host = host or read_host()
    found, _ = find_runnable(bundle, spec, rebuild=True, fallback=False, host=host)
    gpu = "this machine" if host.gpu is None else host.gpu.name
    return Rebuilt(found, f"{spec.name} was built again for {gpu}; the bundle is as it was.")


def explain_unfit(bundle: Bundle, name: str, host: Host | None = None) -> str | None:
    """Why an engine for GPUs cannot run on `host`, in one sentence; None where it may.

    Args:
        bundle: its hashes were checked when it was read.
        name: of the engine; None is returned for one that needs no GPU.
        host: the machine; None: this one.
    """
    entry = bundle.manifest.engines[name]
    if not is_for_gpu(entry):
        return None
    host = host or read_host()
    if host.gpu is None and entry.engine not in PRODUCTS:
        return (
            "no NVIDIA GPU was found here (nvidia-smi shows none), and this engine runs on one. "
            "Serve the bundle with another engine of it."
        )
    if entry.engine == "torch":  # which says itself what else it lacks
        return None
    if entry.engine not in PRODUCTS:
        return _explain_no_cuda(host)
    if entry.record is None and entry.recipe is not None:
        where = "Build it here" if host.gpu else "There is no NVIDIA GPU here; build it on one"
        return f"{name} is still to be built. {where} with: deploy finish {bundle.path}"
    file = bundle.path / entry.file
    digest = bundle.manifest.files.get(entry.file)  # its bytes were hashed when it was read
    return explain_mismatch(entry.record, file, host, digest=digest)


def _explain_no_cuda(host: Host) -> str | None:
    """What ONNX Runtime lacks on `host` to run on its GPU; alike for all its engines there."""
    obstacle = None if host.gpu is None else explain_no_provider(host.gpu)
    return None if obstacle is None else f"this engine runs on the GPU, and {obstacle}."


def find_runnable(
    bundle: Bundle, spec: EngineSpec, *, rebuild: bool, fallback: bool, host: Host | None = None
) -> tuple[EngineSpec, str | None]:
    """The engine of `spec` if it runs here, else what is to run in its place.

    Args:
        bundle: that `spec` is of.
        spec: of an engine of TensorRT, of ONNX Runtime on the GPU, or of eager torch there.
        rebuild: build one of TensorRT again from its ONNX file where it does not fit.
        fallback: take the float32 model in ONNX Runtime where nothing else runs.
        host: the machine; None: this one.

    Returns:
        How to open what runs, and a warning where that is not the engine that was asked for.

    Raises:
        EngineError: it does not run, and nothing else may, or can.
    """
    host, name = host or read_host(), spec.name
    reason = explain_unfit(bundle, name, host)
    if reason is None and spec.engine == "torch":  # what its module raises is the user's own
        reason = explain_no_cuda(require("torch", extra="build"))
    elif reason is None:
        reason = _try_out(bundle, spec)
    if reason is None:
        return spec, None
    if rebuild and host.gpu is not None and spec.engine in PRODUCTS:
        try:
            fresh = rebuild_engine(bundle, spec, host)
            failure = _try_out(bundle, fresh)
        except DeployError as error:
            failure = str(error)
        else:
            if failure is None:
                return fresh, None
        reason = f"{reason} Built again, it does not run either: {failure}"
    if not fallback:
        raise EngineError(f"{bundle.path}: {name} cannot run here. {reason}")
    if FALLBACK not in bundle.manifest.engines:
        raise EngineError(
            f"{bundle.path}: {name} cannot run here, and the bundle has no {FALLBACK}. {reason}"
        )
    substitute = _choose_fallback(bundle, spec, host)
    where = "the GPU" if runs_on_gpu(substitute.variant) else "the CPU"
    return substitute, (
        f"{bundle.path}: {name} cannot run here; {FALLBACK} runs in its place, on {where}. {reason}"
    )


def rebuild_engine(bundle: Bundle, spec: EngineSpec, host: Host) -> EngineSpec:
    """Build an engine of the bundle again, for the GPU and the library of `host`.

    The engine is kept in the user's cache by the hash of all that it depends on, and found there
    the next time.

    Raises:
        EngineError: the bundle does not keep what it is built from, or TensorRT refuses it.
        MissingExtraError: its product is not installed.
    """
    entry = bundle.manifest.engines[spec.name]
    if entry.source is None or host.gpu is None:
        lacking = "an NVIDIA GPU" if host.gpu is None else "the ONNX file that it is built from"
        raise EngineError(f"{spec.name} cannot be built again without {lacking}.")
    source, product = bundle.path / entry.source, PRODUCTS[entry.engine]
    options = entry.recipe or BuildOptions()
    if product.ahead_of_time:
        options = replace(options, targets=(host.gpu.target,))
    installed = host.products.get(product.module)
    key = hash_parts(
        hash_onnx(source),
        product.module,
        None if installed is None else asdict(installed),
        asdict(host.gpu),
        host.system,
        asdict(options),
    )
    cache = open_cache().folder
    folder = (cache or Path(tempfile.gettempdir())) / "engines" / key
    found = _read_rebuilt(folder, spec, host)
    if found is not None:
        return found
    manifest = bundle.manifest
    model = OnnxModel(source, manifest.inputs, manifest.outputs, read_opset(source))
    folder.parent.mkdir(parents=True, exist_ok=True)
    stage = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{key[:16]}."))
    try:
        built: EngineFile = call_in_child(
            "export.tensorrt:build_engine",
            model=model,
            path=stage / _ENGINE,
            engine=product.module,
            options=locate_plugins(options, bundle.path, manifest.files),
        )
        (stage / _RECORD).write_text(json.dumps(asdict(built.record)), encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)  # what is there was found unfit
        os.rename(stage, folder)
    except OSError as error:
        raise EngineError(f"{folder} cannot be written: {error}. Set DEPLOY_CACHE.") from error
    finally:
        shutil.rmtree(stage, ignore_errors=True)
    return replace(spec, path=str(folder / _ENGINE), record=built.record)


def _read_rebuilt(folder: Path, spec: EngineSpec, host: Host) -> EngineSpec | None:
    """What an earlier call has built there, if it is whole and fits."""
    try:
        plain = json.loads((folder / _RECORD).read_text(encoding="utf-8"))
        record = EngineRecord.from_dict(plain)
        misfit = explain_mismatch(record, folder / _ENGINE, host)
    except (OSError, KeyError, TypeError, ValueError):
        return None
    if misfit is not None:
        return None
    return replace(spec, path=str(folder / _ENGINE), record=record)


def _choose_fallback(bundle: Bundle, spec: EngineSpec, host: Host) -> EngineSpec:
    """The bundle's float32 model in ONNX Runtime: on the GPU where it runs there, else the CPU."""
    on_cpu = bundle.spec(FALLBACK, threads=spec.threads)
    if host.gpu is None or explain_no_provider(host.gpu) is not None:
        return on_cpu
    on_gpu = replace(on_cpu, variant=CUDA)
    return on_cpu if _try_out(bundle, on_gpu, answers_of=FALLBACK) is not None else on_gpu


def _try_out(bundle: Bundle, spec: EngineSpec, *, answers_of: str | None = None) -> str | None:
    """Open an engine in a child and hold it to recorded answers; why it fails, if it does.

    Args:
        answers_of: the engine of the bundle whose answers are asked for; None: its own.
    """
    golden, name = bundle.golden(), answers_of or spec.name
    recorded = golden.outputs.get(name)
    try:
        with EngineProcess(spec) as process:
            if recorded is None:
                return None
            answered = process(golden.inputs)
    except DeployError as error:
        return str(error)
    tolerance = bundle.manifest.engines[name].golden_tolerance
    return find_mismatch(recorded, answered, tolerance=tolerance)
