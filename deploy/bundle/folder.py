"""The folder that ships: what is in it, how it is written whole or not at all, how it is trusted.

model.deploy/
    manifest.json       what everything is, and the SHA-256 of every other file
    report.json         all that was judged and measured
    report.html         the same for people
    golden.npz          inputs with the answers that the engines must repeat
    model.onnx          the fused model in float32
    openvino-int8/      one folder for each further engine file
    ...
"""

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploy.bundle.golden import Golden, read_golden
from deploy.bundle.manifest import MANIFEST, Manifest, read_manifest
from deploy.engines import Engine, EngineSpec, open_engine
from deploy.engines.base import check_feeds
from deploy.engines.device import is_for_gpu
from deploy.measuring.machine import usable_cores
from export.errors import BundleError, EngineError
from export.optional import is_installed

REPORT_JSON = "report.json"
REPORT_HTML = "report.html"
GOLDEN = "golden.npz"
FALLBACK = "onnxruntime-fp32"


@dataclass(frozen=True)
class MeasuredRun:
    """The median time of a run in milliseconds, and how many rows such a run had."""

    p50_ms: float
    rows: int


@dataclass(frozen=True)
class Bundle:
    """A bundle on disk whose files match their hashes.

    `reused`: it stood there before, and nothing that it depends on has changed since.
    """

    path: Path
    manifest: Manifest
    reused: bool = False

    @property
    def winner(self) -> str:
        """Name of the engine that the build chose."""
        return self.manifest.winner

    def report(self) -> dict[str, Any]:
        """The build's report, as plain values."""
        from deploy.report import read_report

        return read_report(self.path)

    def times(self) -> dict[str, MeasuredRun]:
        """What the build measured, by engine; of those that were finished since, what that did."""
        report = self.report()
        parts = [(report["measurement"]["batch"], report["candidates"])]
        if report.get("finish"):
            parts.append((report["finish"]["batch"], report["finish"]["candidates"]))
        return {
            row["name"]: MeasuredRun(row["latency"]["p50_ms"], rows)
            for rows, candidates in parts
            for row in candidates
            if row["latency"]
        }

    def golden(self) -> Golden:
        """The recorded inputs with the answers to them.

        Raises:
            BundleError: they cannot be read, or are not of the inputs that the manifest names.
        """
        golden = read_golden(self.path / GOLDEN)
        try:
            check_feeds(self.manifest.inputs, golden.inputs)
        except EngineError as error:
            raise BundleError(
                f"{self.path}: {GOLDEN} does not fit its manifest: {error} Build the bundle again."
            ) from error
        return golden

    def spec(self, name: str, *, threads: int = 0, trust: tuple[str, ...] = ()) -> EngineSpec:
        """How to open the engine `name`.

        Raises:
            BundleError: the bundle has no such engine.
        """
        engines = self.manifest.engines
        if name not in engines:
            raise BundleError(
                f"{self.path} has no engine {name!r}; it has: {', '.join(engines) or 'none'}."
            )
        entry = engines[name]
        return EngineSpec(
            engine=entry.engine,
            precision=entry.precision,
            path=str(self.path / entry.file),
            threads=threads or usable_cores(),
            trust=trust,
            factory=entry.factory,
            keyword=entry.keyword,
            inputs=self.manifest.inputs,
            outputs=self.manifest.outputs,
            variant=entry.variant,
            record=entry.record,
            source=None if entry.source is None else str(self.path / entry.source),
            images=self.manifest.images if entry.engine == "torch" else None,
        )


def describe_reuse(bundle: Bundle) -> str:
    """That nothing was built, and of when and where the times in its report are."""
    from deploy.report.wording import format_time

    manifest = bundle.manifest
    return (
        "Nothing has changed since this bundle was built, so it was kept. Its times were measured "
        f"on {format_time(manifest.created)} on {manifest.machine.get('cpu', 'an unknown CPU')}; "
        "--remeasure takes them anew."
    )


def read_bundle(path: Path | str) -> Bundle:
    """Read a bundle and compare every file with its hash, before anything of it is loaded.

    Raises:
        BundleError: it is missing, incomplete, has a file that the manifest does not name, or a
            byte of it was changed.
    """
    root = Path(path)
    return Bundle(root, read_manifest(root))


def read_result(path: Path) -> dict[str, Any]:
    """The report of a bundle, whose files must match their hashes, or of a report file alone.

    Raises:
        BundleError: it is neither, or a byte of the bundle was changed.
    """
    from deploy.report import read_report

    try:
        is_bundle = path.is_dir() and (path / MANIFEST).exists()
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error}. Check its permissions.") from error
    if is_bundle:
        return read_bundle(path).report()

    return read_report(path)


def load(
    path: Path | str,
    *,
    engine: str | None = None,
    threads: int = 0,
    trust: tuple[str, ...] = (),
    rebuild: bool = False,
    fallback: bool = True,
) -> Engine:
    """Open the winner of the bundle at `path`, or the engine named; hashes are checked first.

    An engine of TensorRT is native code for certain GPUs. It is held against this machine before a
    byte of it is deserialized, and opened in a child process before it is opened in this one; so is
    one of ONNX Runtime for the GPU.

    Args:
        path: the bundle.
        engine: such as ``onnxruntime-fp32``; default: the winner.
        threads: intra-op threads; 0: every usable core.
        trust: packages whose code the user's own model file may run, where the winner is ``torch``.
        rebuild: build an engine of TensorRT that does not fit this machine again, from the bundled
            ONNX file, into the user's cache; the bundle stays as it is.
        fallback: where such an engine does not run, take the bundle's float32 model in ONNX
            Runtime, on the GPU if its CUDA provider is there, else on the CPU, with a warning; so
            too where eager torch is to run on a GPU and there is none.

    Returns:
        A context manager that is called with named arrays and returns named arrays. Where the
        winner is ``torch`` and torch is not installed, the bundle's ONNX Runtime engine in float32;
        its ``name`` is in the warning.

    Raises:
        BundleError, TrustError, MissingExtraError.
        EngineError: the engine cannot be opened, and nothing was to take its place.
    """
    bundle = read_bundle(path)
    name = engine or bundle.winner
    if engine is None and name == "torch" and not is_installed("torch"):
        warnings.warn(
            f"{path}: the winner is eager torch, which is not installed; "
            f"{FALLBACK} runs in its place.",
            stacklevel=2,
        )
        name = FALLBACK
    spec = bundle.spec(name, threads=threads, trust=trust)
    if is_for_gpu(spec):
        from deploy.bundle.substitutes import find_runnable

        spec, warning = find_runnable(bundle, spec, rebuild=rebuild, fallback=fallback)
        if warning is not None:
            warnings.warn(warning, stacklevel=2)
    return open_engine(spec)
