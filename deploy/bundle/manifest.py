"""What `manifest.json` says of a bundle, and whether the folder is what it says.

Every file has its SHA-256 there, and the manifest its own, so that a changed byte anywhere is
found before anything is loaded. Against someone who rewrites the manifest too, only a signature
helps.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from deploy.bundle.manifest_fields import check_fields
from export.artifacts import SizeRange, TensorSpec
from export.errors import BundleError, ConfigError
from export.images import ImageCall
from export.tensorrt.options import BuildOptions
from export.tensorrt.record import EngineRecord

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
_MISFITS = (KeyError, TypeError, ValueError, AttributeError, OverflowError, ConfigError)
"""What comes of fields that are not what they must be."""


@dataclass(frozen=True)
class BundledEngine:
    """One engine of a bundle: which backend opens which file, and how exactly it repeats itself.

    Attributes:
        file: relative to the bundle.
        golden_tolerance: see `deploy.bundle.golden`.
        not_run: why it was not run where the bundle was built; None when it was.
        variant: see `deploy.engines.base.EngineSpec`.
        source: of an engine that was built ahead of time, the ONNX file that it was built from,
            relative to the bundle.
        record: of such an engine, what it needs and was made of; None where it is still to be
            built, and `file` is the ONNX file.
        recipe: how it is built.
    """

    engine: str
    precision: str
    file: str
    golden_tolerance: float
    not_run: str | None = None
    factory: str | None = None
    keyword: bool = False
    variant: str = ""
    source: str | None = None
    record: EngineRecord | None = None
    recipe: BuildOptions | None = None


@dataclass(frozen=True)
class Manifest:
    """What `manifest.json` says.

    Attributes:
        files: every other file with its SHA-256.
        build_key: hash of all that the build depended on; None where that cannot be told.
        input_ranges: smallest and largest calibration value of each input; None without data.
        images: which inputs take uint8 images, [N, H, W, C], and how engines prepare them.
    """

    created: str
    model: str
    winner: str
    engines: dict[str, BundledEngine]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    structure: str
    machine: dict[str, Any]
    files: dict[str, str]
    build_key: str | None = None
    input_ranges: dict[str, tuple[float, float]] | None = None
    images: ImageCall | None = None

    def identity(self) -> str:
        """SHA-256 over all that it says, and so over every file of the bundle, in hex."""
        return _hash_content(asdict(self))


def read_manifest(root: Path) -> Manifest:
    """Read the manifest of the bundle at `root` and hold every file against it.

    Raises:
        BundleError: the manifest is missing or damaged; a file is missing, changed, a link, or not
            named there.
    """
    try:
        if not (root / MANIFEST).is_file():
            lack = f"it has no {MANIFEST}" if root.exists() else "there is no such folder"
            raise BundleError(f"{root} is no bundle: {lack}. Make one with deploy build.")
        manifest = _parse_manifest((root / MANIFEST).read_bytes(), root)
        _check_files(root, manifest)
    except OSError as error:
        raise BundleError(f"{root} cannot be read: {error}. Check its permissions.") from error
    return manifest


def write_manifest(stage: Path, **fields: Any) -> Manifest:
    """Hash every file of `stage` and write the manifest, last of all, in place of one there."""
    names = sorted(_relative(file, stage) for file in stage.rglob("*") if file.is_file())
    files = {name: hash_file(stage / name) for name in names if name != MANIFEST}
    manifest = Manifest(files=files, **fields)
    content = {"format_version": FORMAT_VERSION, **asdict(manifest)}
    content["manifest_sha256"] = _hash_content(content)
    (stage / MANIFEST).write_bytes(_serialize(content))
    return manifest


def hash_file(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
        if not {engine.file, engine.source or engine.file} <= manifest.files.keys():
            raise BundleError(f"{root}: a file of engine {name!r} is not in the manifest.")
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
    try:
        if _hash_content(content) != content["manifest_sha256"] or _serialize(content) != data:
            raise BundleError(f"{damaged} (its SHA-256 differs).")
        return _make_manifest(content)
    except RecursionError as error:
        raise BundleError(f"{damaged} ({error}).") from error
    except _MISFITS as error:
        raise BundleError(f"{damaged} ({type(error).__name__}: {error}).") from error


def _make_manifest(content: dict[str, Any]) -> Manifest:
    json.dumps(content, ensure_ascii=False).encode()  # half a surrogate pair is no text anywhere
    plain = {k: v for k, v in content.items() if k not in ("format_version", "manifest_sha256")}
    engines = {name: _make_engine(entry) for name, entry in plain.pop("engines").items()}
    inputs, outputs = (
        tuple(_make_spec(entry) for entry in plain.pop(key)) for key in ("inputs", "outputs")
    )
    plain["files"] = dict(plain["files"].items())
    if plain.get("input_ranges") is not None:
        pairs = plain.pop("input_ranges").items()
        plain["input_ranges"] = {name: (float(low), float(high)) for name, (low, high) in pairs}
    if plain.get("images") is not None:
        plain["images"] = ImageCall.from_dict(plain["images"])
    manifest = Manifest(engines=engines, inputs=inputs, outputs=outputs, **plain)
    check_fields(manifest)
    return manifest


def _make_spec(entry: Mapping[str, Any]) -> TensorSpec:
    ranges = {str(k): SizeRange(**sizes) for k, sizes in entry.get("ranges", {}).items()}
    if not isinstance(entry["shape"], list):
        raise ValueError(f"the shape of {entry['name']!r} is {entry['shape']!r}")
    return TensorSpec(entry["name"], tuple(entry["shape"]), entry["dtype"], ranges)


def _make_engine(entry: Mapping[str, Any]) -> BundledEngine:
    record, recipe = entry.get("record"), entry.get("recipe")
    return BundledEngine(
        **{
            **entry,
            "record": None if record is None else EngineRecord.from_dict(record),
            "recipe": None if recipe is None else BuildOptions.from_dict(recipe),
        }
    )


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
