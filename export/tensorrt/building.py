"""OnnxModel → engine file: parse, build, write whole or not at all."""

import hashlib
import os
import platform
import tempfile
from pathlib import Path
from typing import Any

from export.artifacts import OnnxModel
from export.errors import EngineError
from export.gpu import GpuFacts, read_gpu
from export.onnx.files import external_files, read_model
from export.progress import ProgressCallback, ignore_progress
from export.tensorrt.contract import check_contract, find_stray_loops
from export.tensorrt.messages import explain_parser
from export.tensorrt.monitor import BuildMonitor
from export.tensorrt.options import BuildOptions, ShapeProfile, make_profiles
from export.tensorrt.plugins import copy_plugins, load_plugins
from export.tensorrt.products import ErrorLog, Product, find_product, import_product, start
from export.tensorrt.record import EngineFile, EngineRecord

TIMING_CACHE = "timing.cache"
"""Beside the engine: what NVIDIA TensorRT measured of kernels, for the next build."""


def build_engine(
    model: OnnxModel,
    path: Path,
    *,
    engine: str = "tensorrt_rtx",
    options: BuildOptions | None = None,
    progress: ProgressCallback = ignore_progress,
) -> EngineFile:
    """Build `model` into a serialized engine at `path`.

    Args:
        model: float32, fp16 or bf16 by Casts, or int8 by Q/DQ with zero point 0 and float biases.
        path: the file to write; written last and at once, so that a build that fails, or is
            interrupted, leaves none.
        engine: ``tensorrt`` or ``tensorrt_rtx``.
        options: shapes, limits and flags; the default is batch 1 to 16 for `DEFAULT_TARGETS`.
        progress: told in percent, by TensorRT's own progress monitor. What it raises cancels the
            build and is raised here.

    Returns:
        The file, and what is to be known of it before anybody opens it.

    Raises:
        MissingExtraError: the product is not installed.
        ConfigError: `options` do not fit the product or the model's inputs.
        EngineError: the graph, the parser or the builder refuses; the message has every node with
            its module path and source line. Or a plugin library has changed or does not load.
    """
    product, options = find_product(engine), options or BuildOptions()
    options.check(product)
    trt = import_product(product)
    profiles = make_profiles(model.inputs, options)
    check_contract(model.path, product.title)
    gpu = _need_gpu(product, options)
    plugins = copy_plugins(options.plugins, path.parent)
    log = ErrorLog(trt)
    monitor = BuildMonitor(trt, f"build {path.parent.name or path.name}", progress)
    builder = start(product, trt.Builder, log)
    load_plugins(builder.get_plugin_registry(), [Path(plugin.path) for plugin in plugins])
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log.logger)
    if not parser.parse_from_file(str(model.path)):
        raise EngineError(explain_parser(product.title, parser, model.path))
    config = _configure(trt, builder, options, product)
    config.progress_monitor = monitor.native
    for profile in profiles:
        config.add_optimization_profile(_make_profile(builder, profile))
    path.parent.mkdir(parents=True, exist_ok=True)
    cache = _open_timing_cache(config, path, options, product)
    with monitor.hold_signals():
        plan = builder.build_serialized_network(network, config)
    monitor.raise_what_was_raised()
    if plan is None:
        raise EngineError(_explain_builder(product, model.path, log, options))
    write_whole(path, plan)
    if cache is not None:
        write_whole(path.with_name(TIMING_CACHE), cache.serialize())
    record = EngineRecord(
        product=product.module,
        version=str(trt.__version__),
        targets=(gpu.target,) if gpu and not product.ahead_of_time else options.targets,
        flags=(*_flag_names(options, product), *_compatibility(options)),
        profiles=profiles,
        onnx_sha256=hash_onnx(model.path),
        engine_sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        cuda=gpu.cuda if gpu else None,
        driver=gpu.driver if gpu else None,
        gpu=gpu.name if gpu else None,
        system=f"{platform.system().lower()}-{platform.machine().lower()}",
        plugins={plugin.name: plugin.sha256 for plugin in plugins},
    )
    return EngineFile(path, record)


def hash_onnx(path: Path) -> str:
    """SHA-256 over an ONNX file and the files of its external data, in the order of their names."""
    digest = hashlib.sha256()
    for file in (path, *external_files(path)):
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def _need_gpu(product: Product, options: BuildOptions) -> GpuFacts | None:
    """The GPU of this machine; None where there is none and none is needed.

    Raises:
        EngineError: one is needed, and there is none.
    """
    gpu = read_gpu()
    if gpu is not None:
        return gpu
    if not product.ahead_of_time:
        raise EngineError(
            f"{product.title} builds for the GPU that it runs on, and there is no NVIDIA GPU here. "
            "Build there, or take TensorRT for RTX, which builds ahead of time."
        )
    if options.refittable or options.stripped:
        raise EngineError(
            f"{product.title} compiles refittable and weight-stripped engines on a GPU alone, and "
            "there is no NVIDIA GPU here. Build there, or leave these options out."
        )
    return None


def _configure(trt: Any, builder: Any, options: BuildOptions, product: Product) -> Any:
    config = builder.create_builder_config()
    if product.ahead_of_time:
        config.num_compute_capabilities = len(options.targets)
        for index, target in enumerate(options.targets):
            config.set_compute_capability(_compute_capability(trt, product, target), index)
    if options.workspace is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace)
    if options.level is not None:
        config.builder_optimization_level = options.level
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if options.hardware_compatible:
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
    config.clear_flag(trt.BuilderFlag.TF32)
    for name in _flag_names(options, product):
        config.set_flag(getattr(trt.BuilderFlag, name))
    return config


def _flag_names(options: BuildOptions, product: Product) -> tuple[str, ...]:
    wanted = {
        "TF32": options.tf32,
        "REFIT": options.refittable,
        "STRIP_PLAN": options.stripped,
        "VERSION_COMPATIBLE": options.version_compatible,
        "DISABLE_TIMING_CACHE": product.ahead_of_time or not options.timing_cache,
    }
    return tuple(name for name, on in wanted.items() if on)


def _compatibility(options: BuildOptions) -> tuple[str, ...]:
    """What is no builder flag and still decides on which GPUs an engine runs."""
    return ("AMPERE_PLUS",) if options.hardware_compatible else ()


def _compute_capability(trt: Any, product: Product, target: str) -> Any:
    members = trt.ComputeCapability.__members__
    if target not in members:
        known = ", ".join(name for name in members if name.startswith("SM"))
        raise EngineError(f"{product.title} has no target {target!r}; it has {known}.")
    return members[target]


def _make_profile(builder: Any, shapes: ShapeProfile) -> Any:
    profile = builder.create_optimization_profile()
    for name, three in shapes.shapes.items():
        profile.set_shape(name, *three)
    return profile


def _open_timing_cache(
    config: Any, path: Path, options: BuildOptions, product: Product
) -> Any | None:
    """The timing cache of the last build beside `path`, or a new one; None where none is kept.

    One that another GPU or version has left is refused by TensorRT, which then begins anew.
    """
    if product.ahead_of_time or not options.timing_cache:
        return None
    file = path.with_name(TIMING_CACHE)
    cache = config.create_timing_cache(file.read_bytes() if file.is_file() else b"")
    if not config.set_timing_cache(cache, False):
        cache = config.create_timing_cache(b"")
        config.set_timing_cache(cache, False)
    return cache


def _explain_builder(product: Product, model: Path, log: ErrorLog, options: BuildOptions) -> str:
    reason = log.explain()
    advice = ""
    loops = find_stray_loops(read_model(model, weights=False))
    if loops:
        advice = (
            f" Its builder fails on recurrent layers that stay in float32 beside 16-bit ones, here "
            f"{', '.join(loops)}: take TF32 for this model."
        )
    elif "lean" in reason and options.version_compatible:
        advice = " Version-compatible engines need the lean runtime; install it, or leave that out."
    elif "workspace" in reason or "memory" in reason.lower():
        advice = " Give it a smaller range of batch sizes, or more workspace."
    return f"{product.title} cannot build {model.name}: {reason}.{advice}"


def write_whole(path: Path, content: Any) -> None:
    """Write bytes beside `path` and rename, so that what is there is whole."""
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(memoryview(content))
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
