"""Do the parts of a bundle fit together: hashes alone say that none was changed."""

from collections.abc import Sequence
from pathlib import Path

import onnx
from onnx import TensorProto, helper

from deploy.bundle.folder import Bundle
from deploy.engines.conformity import DeclaredTensor, explain_difference
from export.errors import BundleError, LoadError
from export.onnx.files import read_model


def check_sound(bundle: Bundle) -> None:
    """Hold winner, report, manifest and ONNX files of a bundle against each other.

    Raises:
        BundleError: it lacks its winner, its report is none, or an ONNX file takes or returns other
            than the manifest says: in name, rank, size or type.
    """
    bundle.spec(bundle.winner)
    bundle.report()
    manifest = bundle.manifest
    files = {entry.file for entry in manifest.engines.values()}
    files |= {entry.source for entry in manifest.engines.values() if entry.source is not None}
    for file in sorted(name for name in files if name.endswith(".onnx")):
        try:
            taken, returned = _read_signature(bundle.path / file)
        except LoadError:
            continue  # its engine cannot open it either, and says so
        for what, specs, found in (
            ("inputs", manifest.inputs, taken),
            ("outputs", manifest.outputs, returned),
        ):
            difference = explain_difference(what, specs, found)
            if difference is not None:
                raise BundleError(f"{bundle.path}: {file}: {difference}. Build the bundle again.")


def _read_signature(path: Path) -> tuple[list[DeclaredTensor], list[DeclaredTensor]]:
    """Inputs and outputs of an ONNX file, as it declares them.

    Raises:
        LoadError: the file is not ONNX.
    """
    graph = read_model(path, weights=False).graph
    weights = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in weights]
    return _declare(inputs), _declare(graph.output)


def _declare(values: Sequence[onnx.ValueInfoProto]) -> list[DeclaredTensor]:
    found = []
    for value in values:
        kind = value.type.tensor_type
        shape = tuple(
            dim.dim_value if dim.HasField("dim_value") else dim.dim_param or "?"
            for dim in kind.shape.dim
        )
        known = kind.elem_type != TensorProto.UNDEFINED
        dtype = helper.tensor_dtype_to_np_dtype(kind.elem_type).name if known else None
        found.append(DeclaredTensor(value.name, shape if kind.HasField("shape") else None, dtype))
    return found
