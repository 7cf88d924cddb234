"""Which engine of a bundle runs in Triton, and under which name.

Triton's ``onnxruntime`` backend opens any ONNX file, also one whose Q/DQ pairs were placed for
OpenVINO. That one is never taken: ONNX Runtime fuses another placement, and what a bundle says of
such a file was measured in OpenVINO. So only engines that were judged and measured in ONNX Runtime
itself are candidates. A plan of TensorRT for RTX is none of TensorRT, and Triton cannot open it.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from deploy.bundle.folder import FALLBACK, Bundle
from deploy.bundle.manifest import BundledEngine
from deploy.engines.device import CUDA_GRAPHS, CUDA_NHWC
from export.errors import BundleError, ConfigError

BACKENDS: Mapping[str, str] = {"onnxruntime": "onnxruntime", "tensorrt": "tensorrt"}
"""Triton's backend by the engine whose files it opens."""

_MAX_NAME = 128


@dataclass(frozen=True)
class Choice:
    """The engine that is exported, and what to know of that."""

    engine: str
    backend: str
    warnings: tuple[str, ...] = ()


def choose_engine(bundle: Bundle, named: str | None = None) -> Choice:
    """The engine `named`, else the winner, else the fastest that Triton can run.

    Raises:
        BundleError: there is no such engine, Triton has no backend for it, or for none of them.
    """
    engines = bundle.manifest.engines
    able = {name: entry for name, entry in engines.items() if _has_backend(entry)}
    if named is not None:
        bundle.spec(named)  # says which engines there are
        if named not in able:
            known = ", ".join(able) or "nothing of this bundle"
            raise BundleError(f"{bundle.path}: Triton cannot run {named}. It runs: {known}.")
        return Choice(named, BACKENDS[able[named].engine])
    if bundle.winner in able:
        return Choice(bundle.winner, BACKENDS[able[bundle.winner].engine])
    times = {name: run.p50_ms for name, run in bundle.times().items()}
    measured = [name for name in able if name in times and able[name].not_run is None]
    fallback = [name for name in (FALLBACK, *able) if name in able]
    if not fallback:
        raise BundleError(
            f"{bundle.path} has no engine that Triton runs: it has {', '.join(engines) or 'none'}, "
            "and Triton takes those of ONNX Runtime and TensorRT. Build it again."
        )
    chosen = min(measured, key=lambda name: times[name]) if measured else fallback[0]
    return Choice(chosen, BACKENDS[able[chosen].engine], (_explain(bundle, chosen, times),))


def _has_backend(entry: BundledEngine) -> bool:
    """Whether Triton opens its file; an engine of TensorRT that is still to be built has none.

    Nor does its configuration know of channels last in ONNX Runtime, or of a graph for each shape.
    """
    unbuilt = entry.engine == "tensorrt" and entry.file.endswith(".onnx")
    without = entry.variant in (CUDA_NHWC, CUDA_GRAPHS)
    return entry.engine in BACKENDS and not unbuilt and not without


def make_name(bundle: Bundle, named: str | None) -> str:
    """The model's name in the repository: `named`, or that of the model file.

    Raises:
        ConfigError: `named` cannot be the name of a folder and of a part of a URL.
    """
    if named is None:
        stem = bundle.manifest.model.rpartition(".")[0] or bundle.manifest.model
        return re.sub(r"[^A-Za-z0-9_.-]", "_", stem).strip("._-")[:_MAX_NAME] or "model"
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", named) or len(named) > _MAX_NAME:
        raise ConfigError(
            f"--name {named!r}: write letters, digits, '-', '_' and '.', a letter or digit first, "
            f"{_MAX_NAME} at most."
        )
    return named


def _explain(bundle: Bundle, chosen: str, times: Mapping[str, float]) -> str:
    """That the winner stays behind, and what that costs."""
    cost = ""
    if chosen in times and bundle.winner in times:
        cost = f" ({times[chosen]:.3g} ms where the winner took {times[bundle.winner]:.3g} ms)"
    return (
        f"Triton does not run the winner, {bundle.winner}; {chosen} is exported in its place{cost}."
    )
