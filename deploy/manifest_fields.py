"""Are the fields of a manifest what they claim to be, before anything relies on them.

Hashes find what was damaged; this finds what was written wrongly, by another program or by hand.
"""

import math
from typing import TYPE_CHECKING, Any

from deploy.datatypes import DATATYPES
from export.artifacts import TensorSpec

if TYPE_CHECKING:
    from deploy.manifest import BundledEngine, Manifest

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
    for what, specs in (("inputs", manifest.inputs), ("outputs", manifest.outputs)):
        if not specs:
            raise ValueError(f"it has no {what}")
        for spec in specs:
            _check_spec(what, spec)
    for spec in manifest.inputs:
        if spec.dtype not in DATATYPES:
            raise ValueError(f"the dtype of input {spec.name!r} is {spec.dtype!r}")
    for name, pair in (manifest.input_ranges or {}).items():
        if not all(map(math.isfinite, pair)):
            raise ValueError(f"the range of input {name!r} is not finite")


def _check_engine(name: str, engine: "BundledEngine") -> None:
    for field, types in _ENGINE.items():
        _check(f"{field} of engine {name!r}", getattr(engine, field), types)
    if not 0 <= engine.golden_tolerance < math.inf:
        raise ValueError(f"golden_tolerance of engine {name!r} is {engine.golden_tolerance}")
    if engine.record is None:
        return
    for field in _RECORD_TEXTS:
        _check(f"{field} of engine {name!r}", getattr(engine.record, field), (str,))


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
