"""Integer divisions by which a request can end the process of ONNX Runtime, in words."""

from pathlib import Path

import onnxruntime

from deploy.engines.base import EngineSpec
from export.onnx.division import find_trapping
from export.onnx.files import read_model

_REFUSES_ZERO = (1, 26)
"""The first release of ONNX Runtime that looks at integer divisors before it divides."""
_NAMED = 3


def explain_trapping(spec: EngineSpec, *, version: str | None = None) -> str | None:
    """By which integer divisions of an engine a request can end its process; None: by none.

    What this package exports has such only with a release of ONNX Runtime that is too old to
    refuse a zero; files of other makers, and of older builds, may divide the least integer by -1.

    Args:
        spec: of any engine.
        version: of ONNX Runtime; None: of the one that is installed.

    Raises:
        LoadError: the file is not ONNX.
    """
    if spec.engine != "onnxruntime":
        return None
    model = read_model(Path(spec.path), weights=False)
    overflowing = find_trapping(model)
    if overflowing:
        return (
            f"{spec.name}: {_name_some(overflowing)} may divide the least integer by -1, and a "
            "request that has it do so ends the process. Build the bundle again: divisions are "
            "written in another way since."
        )
    installed = onnxruntime.__version__ if version is None else version
    if tuple(int(part) for part in installed.split(".")[:2]) >= _REFUSES_ZERO:
        return None
    dividing = find_trapping(model, by_zero=True)
    if not dividing:
        return None
    return (
        f"{spec.name}: {_name_some(dividing)} may divide integers by zero, which ends the process "
        f"in ONNX Runtime {installed}. Install a later one: pip install 'onnxruntime>=1.26'"
    )


def _name_some(labels: tuple[str, ...]) -> str:
    more = len(labels) - _NAMED
    return ", ".join(labels[:_NAMED]) + (f" and {more} more" if more > 0 else "")
