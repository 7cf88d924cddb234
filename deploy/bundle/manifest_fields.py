"""Are the fields of a manifest what they claim to be, before anything relies on them.

Hashes find what was damaged; this finds what was written wrongly, by another program or by hand.
"""

import math
from typing import TYPE_CHECKING, Any

from deploy.bundle.golden import TOLERANCE
from deploy.datatypes import DATATYPES
from deploy.engines.base import name_candidate
from export.artifacts import TensorSpec
from export.images import FLOATS, ImageInput

if TYPE_CHECKING:
    from deploy.bundle.manifest import BundledEngine, Manifest

_ENGINE: dict[str, tuple[type, ...]] = {
    "engine": (str,),
    "precision": (str,),
    "file": (str,),
    "golden_tolerance": (int, float),
    "not_run": (str, type(None)),
    "factory": (str, type(None)),
    "keyword": (bool,),
    "variant": (str,),
    "source": (str, type(None)),
}
_RECORD_TEXTS = ("product", "version", "onnx_sha256", "engine_sha256")


def check_fields(manifest: "Manifest") -> None:
    """Hold the types and the few values that everything else relies on.

    Raises:
        ValueError: one is not what it must be; the message names it.
    """
    for name in ("created", "model", "winner", "structure"):
        _check(name, getattr(manifest, name), (str,))
    _check("machine", manifest.machine, (dict,))
    _check("build_key", manifest.build_key, (str, type(None)))
    for name, digest in manifest.files.items():
        _check(f"the hash of {name}", digest, (str,))
    for name, engine in manifest.engines.items():
        _check_engine(name, engine)
    if manifest.winner not in manifest.engines:
        known = ", ".join(manifest.engines) or "none"
        raise ValueError(f"the winner is no engine {manifest.winner!r}; it has: {known}")
    for what, specs in (("inputs", manifest.inputs), ("outputs", manifest.outputs)):
        if not specs:
            raise ValueError(f"it has no {what}")
        for spec in specs:
            _check_spec(what, spec)
        if len({spec.name for spec in specs}) < len(specs):
            raise ValueError(f"two of its {what} have one name")
    for spec in manifest.inputs:
        if spec.dtype not in DATATYPES:
            raise ValueError(f"the dtype of input {spec.name!r} is {spec.dtype!r}")
    by_name = {spec.name: spec for spec in manifest.inputs}
    for name, pair in (manifest.input_ranges or {}).items():
        if name not in by_name:
            raise ValueError(f"there is a range of {name!r}, which is no input")
        if not all(map(math.isfinite, pair)):
            raise ValueError(f"the range of input {name!r} is not finite")
    images = () if manifest.images is None else manifest.images.inputs
    for image in images:
        _check_image(image, by_name.pop(image.name, None))


def _check_engine(name: str, engine: "BundledEngine") -> None:
    for field, types in _ENGINE.items():
        _check(f"{field} of engine {name!r}", getattr(engine, field), types)
    if engine.precision not in TOLERANCE:
        known = ", ".join(TOLERANCE)
        raise ValueError(
            f"precision of engine {name!r} is {engine.precision!r}, not one of {known}"
        )
    named = "torch" if engine.engine == "torch" else name_candidate(engine)
    if name != named:
        raise ValueError(f"engine {named!r} is called {name!r}")
    if not 0 <= float(engine.golden_tolerance) < math.inf:
        raise ValueError(f"golden_tolerance of engine {name!r} is {engine.golden_tolerance}")
    if engine.record is None:
        return
    for field in _RECORD_TEXTS:
        _check(f"{field} of engine {name!r}", getattr(engine.record, field), (str,))


def _check_image(image: ImageInput, spec: TensorSpec | None) -> None:
    """`spec` is of the input that it names, the first time that it does."""
    if spec is None or spec.dtype != "uint8" or len(spec.shape) != 4:
        raise ValueError(
            f"images: {image.name!r} is no input of uint8 [N, H, W, C], or comes again"
        )
    what = f"the images of {image.name!r}"
    for number in (*image.mean, *image.std, image.scale):
        _check(f"a number of {what}", number, (int, float))
        if not math.isfinite(number):
            raise ValueError(f"a number of {what} is {number}")
    if not {len(image.mean), len(image.std)} <= {1, spec.shape[3]}:
        raise ValueError(f"{what} have not as many numbers as channels")
    if min(*image.std, image.scale) <= 0:
        raise ValueError(f"{what} are divided by {image.std} and {image.scale}")
    if image.dtype not in FLOATS:
        raise ValueError(f"{what} become {image.dtype!r}")


def _check_spec(what: str, spec: TensorSpec) -> None:
    _check(f"a name in {what}", spec.name, (str,))
    _check(f"dtype of {spec.name!r}", spec.dtype, (str,))
    for size in spec.shape:
        _check(f"a size of {spec.name!r}", size, (int, str))
        if isinstance(size, int) and size < 0:
            raise ValueError(f"a size of {spec.name!r} is {size}")


def _check(what: str, value: Any, types: tuple[type, ...]) -> None:
    """`value` is of one of `types`; True and False are no numbers."""
    if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
        raise ValueError(f"{what} is {value!r}")
