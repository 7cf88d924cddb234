"""The folder that ships: what is in it, how it is written whole or not at all, how it is trusted.

model.deploy/
    manifest.json       what everything is, and the SHA-256 of every other file
    report.json         all that was judged and measured
    report.html         the same for people
    golden.npz          inputs with the answers that the engines must repeat
    model.onnx          the fused model in float32
    onnx-int8/          one folder for each further engine file
    ...
"""

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from deploy.engines import Engine, EngineSpec, open_engine
from deploy.machine import usable_cores
from export.artifacts import TensorSpec
from export.errors import BundleError
from export.optional import is_installed

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
REPORT_JSON = "report.json"
REPORT_HTML = "report.html"
GOLDEN = "golden.npz"
MODEL_ONNX = "model.onnx"
FALLBACK = "onnxruntime-fp32"


@dataclass(frozen=True)
class BundledEngine:
    """One engine of a bundle: which backend opens which file, and how exactly it repeats itself.

    Attributes:
        file: relative to the bundle.
        golden_tolerance: see `deploy.golden`.
        not_run: why it was not run where the bundle was built; None when it was.
    """

    engine: str
    precision: str
    file: str
    golden_tolerance: float
    not_run: str | None = None
    factory: str | None = None
    keyword: bool = False


@dataclass(frozen=True)
class Manifest:
    """What `manifest.json` says. `files` maps every other file to its SHA-256."""

    created: str
    model: str
    winner: str
    engines: dict[str, BundledEngine]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    structure: str
    machine: dict[str, Any]
    files: dict[str, str]


@dataclass(frozen=True)
class Bundle:
    """A bundle on disk whose files match their hashes."""

    path: Path
    manifest: Manifest

    @property
    def winner(self) -> str:
        """Name of the engine that the build chose."""
        return self.manifest.winner

    def report(self) -> dict[str, Any]:
        """The build's report, as plain values."""
        from deploy.report import read_report

        return read_report(self.path)

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
        )


def read_bundle(path: Path | str) -> Bundle:
    """Read a bundle and compare every file with its hash, before anything of it is loaded.

    Raises:
        BundleError: it is missing, incomplete, has a file that the manifest does not name, or a
            byte of it was changed.
    """
    root = Path(path)
    if not (root / MANIFEST).is_file():
        raise BundleError(f"{root} is no bundle: it has no {MANIFEST}. Make one with deploy build.")
    try:
        manifest = _parse_manifest((root / MANIFEST).read_bytes(), root)
        _check_files(root, manifest)
    except OSError as error:
        raise BundleError(f"{root} cannot be read: {error}. Check its permissions.") from error
    return Bundle(root, manifest)


def load(
    path: Path | str,
    *,
    engine: str | None = None,
    threads: int = 0,
    trust: tuple[str, ...] = (),
) -> Engine:
    """Open the winner of the bundle at `path`, or the engine named; hashes are checked first.

    Args:
        path: the bundle.
        engine: such as ``onnxruntime-fp32``; default: the winner.
        threads: intra-op threads; 0: every usable core.
        trust: packages whose code the user's own model file may run, where the winner is ``torch``.

    Returns:
        A context manager that is called with named arrays and returns named arrays. Where the
        winner is ``torch`` and torch is not installed, the bundle's ONNX Runtime engine in float32;
        its ``name`` is in the warning.

    Raises:
        BundleError, TrustError, MissingExtraError, EngineError.
    """
    bundle = read_bundle(path)
    name = engine or bundle.winner
    if engine is None and name == "torch" and not is_installed("torch"):
        import warnings

        warnings.warn(
            f"{path}: the winner is eager torch, which is not installed; "
            f"{FALLBACK} runs in its place.",
            stacklevel=2,
        )
        name = FALLBACK
    return open_engine(bundle.spec(name, threads=threads, trust=trust))


@contextlib.contextmanager
def stage_bundle(target: Path) -> Iterator[Path]:
    """A folder beside `target` to build in; becomes `target` when the block ends well.

    On any error or interrupt the folder is removed and what stood at `target` stays.

    Raises:
        BundleError: something that is no bundle stands at `target`.
    """
    target = target.resolve()  # a link to a bundle stays, and what it leads to is replaced
    _refuse_other(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        stage = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    except OSError as error:
        raise BundleError(
            f"{target} cannot be written: {error.strerror}. Choose another --output."
        ) from error
    try:
        yield stage
        stage.chmod(0o755)
        _refuse_other(target)
        _replace(stage, target)
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def write_manifest(stage: Path, **fields: Any) -> Manifest:
    """Hash every file of `stage` and write the manifest, last of all."""
    names = sorted(_relative(file, stage) for file in stage.rglob("*") if file.is_file())
    files = {name: hash_file(stage / name) for name in names}
    manifest = Manifest(files=files, **fields)
    content = {"format_version": FORMAT_VERSION, **asdict(manifest)}
    content["manifest_sha256"] = _hash_content(content)
    (stage / MANIFEST).write_bytes(_serialize(content))
    return manifest


def hash_file(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _refuse_other(target: Path) -> None:
    """Only a bundle may be replaced: many folders have a manifest.json that is not ours."""
    if not target.exists():
        return
    manifest = target / MANIFEST
    if not manifest.is_file() or b'"manifest_sha256"' not in manifest.read_bytes():
        raise BundleError(
            f"{target} exists and is no bundle; it is left alone. Choose another --output."
        )


def _replace(stage: Path, target: Path) -> None:
    """Put `stage` where `target` is; a crash in between leaves the old bundle beside it."""
    old = target.with_name(f".{target.name}.old-{os.getpid()}")
    try:
        if target.exists():
            target.rename(old)
        stage.rename(target)
    except BaseException:  # Ctrl-C too
        if old.exists() and not target.exists():
            old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _check_files(root: Path, manifest: Manifest) -> None:
    """Hold the folder against its manifest: every file of it, and no other."""
    entries = list(root.rglob("*"))
    for entry in entries:
        if entry.is_symlink():
            raise BundleError(
                f"{root}: {_relative(entry, root)} is a link, and a bundle holds its files itself. "
                "Build or copy the bundle again."
            )
    for name, digest in manifest.files.items():
        file = _inside(root, name)
        if not file.is_file():
            raise BundleError(f"{root}: {name} is missing. Build or copy the bundle again.")
        if hash_file(file) != digest:
            raise BundleError(
                f"{root}: {name} was changed after the build (its SHA-256 differs). "
                "Build or copy the bundle again."
            )
    for name, engine in manifest.engines.items():
        if engine.file not in manifest.files:
            raise BundleError(f"{root}: the file of engine {name!r} is not in the manifest.")
    extra = {_relative(entry, root) for entry in entries if not entry.is_dir()}
    extra -= {*manifest.files, MANIFEST}
    if extra:
        raise BundleError(
            f"{root}: {min(extra)} is not part of the bundle. Remove it, or build again."
        )


def _serialize(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=2) + "\n").encode()


def _hash_content(content: Mapping[str, Any]) -> str:
    plain = {key: value for key, value in content.items() if key != "manifest_sha256"}
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def _parse_manifest(data: bytes, root: Path) -> Manifest:
    damaged = f"{root / MANIFEST} is damaged; build or copy the bundle again"
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{damaged} ({error}).") from error
    if not isinstance(content, dict) or "manifest_sha256" not in content:
        raise BundleError(f"{damaged}.")
    if content.get("format_version") != FORMAT_VERSION:
        raise BundleError(
            f"{root} has bundle format {content.get('format_version')!r}; this version reads "
            f"{FORMAT_VERSION}. Build it again."
        )
    if _hash_content(content) != content["manifest_sha256"] or _serialize(content) != data:
        raise BundleError(f"{damaged} (its SHA-256 differs).")
    try:
        return _make_manifest(content)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BundleError(f"{damaged} ({type(error).__name__}: {error}).") from error


def _make_manifest(content: dict[str, Any]) -> Manifest:
    plain = {k: v for k, v in content.items() if k not in ("format_version", "manifest_sha256")}
    engines = {name: BundledEngine(**entry) for name, entry in plain.pop("engines").items()}
    inputs, outputs = (
        tuple(TensorSpec(s["name"], tuple(s["shape"]), s["dtype"]) for s in plain.pop(key))
        for key in ("inputs", "outputs")
    )
    plain["files"] = dict(plain["files"].items())
    return Manifest(engines=engines, inputs=inputs, outputs=outputs, **plain)


def _relative(file: Path, root: Path) -> str:
    return file.relative_to(root).as_posix()


def _inside(root: Path, name: str) -> Path:
    """The file `name` of the bundle; a name that leads out of it is refused."""
    parts = PurePosixPath(name)
    if parts.is_absolute() or ".." in parts.parts or "\\" in name or "\0" in name:
        raise BundleError(f"{root}: the manifest names {name!r}, which is outside the bundle.")
    file = root / parts
    if not file.resolve().is_relative_to(root.resolve()):
        raise BundleError(f"{root}: {name} leads outside the bundle.")
    return file
