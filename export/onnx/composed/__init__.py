"""Operators for which the exporter has no function, as compositions of those for which it has.

Each composition is a function of torch that takes what the operator takes. ``NotImplemented``, its
answer to what it does not compose, leaves the operator as it is, and the exporter says that it does
not know it. Some are kinds of an operator that the exporter writes wrongly.
"""

from collections.abc import Callable
from typing import Any

from torch import fx
from torch.export import ExportedProgram

from export.capture.quick_shapes import shape_quickly
from export.onnx.complex.pairs import is_complex
from export.onnx.composed import fourier, matrices, order, pairs, scans, scattering

COMPOSITIONS: dict[Any, Callable[..., Any]] = {
    **fourier.COMPOSITIONS,
    **matrices.COMPOSITIONS,
    **order.COMPOSITIONS,
    **pairs.COMPOSITIONS,
    **scans.COMPOSITIONS,
    **scattering.COMPOSITIONS,
}
"""By operator of torch."""

_NAMES = frozenset(target.name().partition(".")[0] for target in COMPOSITIONS)


def compose(program: ExportedProgram) -> ExportedProgram:
    """`program` with compositions in place of such operators; itself where it has none.

    Nothing is written in place afterwards, wherever there are such operators or complex values.
    """
    found = (_is_composed(node) for graph in _list_graphs(program) for node in graph.nodes)
    if not any(found):
        return program
    with shape_quickly():
        composed: ExportedProgram = program.run_decompositions(COMPOSITIONS)
    return composed


def _list_graphs(program: ExportedProgram) -> list[fx.Graph]:
    """That of the program, and those of the branches and loops in it."""
    modules = program.graph_module.modules()
    return [module.graph for module in modules if isinstance(module, fx.GraphModule)]


def _is_composed(node: fx.Node) -> bool:
    """Whether it is one of them, or what writes the same into its first argument, or complex."""
    if is_complex(node):
        return True
    name = getattr(node.target, "name", None)
    if node.op != "call_function" or name is None:
        return False
    return name().partition(".")[0].removesuffix("_") in _NAMES
