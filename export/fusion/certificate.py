"""What was merged, what was left, and how far the whole model is from what it was.

Every block carries its own proof (`trial`). The whole model is held against itself once more:
original and merged program on the example input of the capture, beside the original in float64.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.utils import _pytree as pytree

from export.artifacts import Fused, Skip
from export.fusion.cost import count_macs, is_layer
from export.fusion.draft import Draft
from export.fusion.evaluation import cast, evaluate

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class WholeModel:
    """The merged model beside the original.

    Attributes:
        layers_before, layers_after: convolutions and linear layers.
        parameters_before, parameters_after: stored floating numbers, statistics included.
        macs_before, macs_after: for one sample at the captured size; norms and sums count one an
            element.
        error_float32: merged, in the model's precision, beside the original in float64: largest
            difference over largest value, of the worst output. None where that could not be run.
        noise_float32: the same of the original.
        reason: why there is no error; None where there is.
    """

    layers_before: int
    layers_after: int
    parameters_before: int
    parameters_after: int
    macs_before: int
    macs_after: int
    error_float32: float | None
    noise_float32: float | None
    reason: str | None


@dataclass(frozen=True)
class Certificate:
    """The evidence of a fusion.

    Attributes:
        fused: block by block what became what, with its proof.
        skipped: what was left, and why.
        model: all of it together.
    """

    fused: tuple[Fused, ...]
    skipped: tuple[Skip, ...]
    model: WholeModel

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"schema_version": SCHEMA_VERSION, **asdict(self)}


def certify(
    original: ExportedProgram,
    merged: ExportedProgram,
    fused: tuple[Fused, ...],
    skipped: tuple[Skip, ...],
) -> Certificate:
    """Count both programs and run them on the example input that the original was captured with."""
    before, after = Draft(original), Draft(merged)
    errors: tuple[float | None, float | None, str | None] = (None, None, None)
    try:
        errors = (*_measure(original, before, after), None)
    except KeyError as error:  # a stored tensor that has no one value
        errors = (None, None, f"the model changes {error.args[0]} in place when it runs")
    except (RuntimeError, NotImplementedError, TypeError, ValueError) as error:
        message = str(error).splitlines()[0] if str(error) else ""
        errors = (None, None, f"{type(error).__name__}: {message}")
    model = WholeModel(
        layers_before=_count_layers(before),
        layers_after=_count_layers(after),
        parameters_before=_count_parameters(original),
        parameters_after=_count_parameters(merged),
        macs_before=_count_macs(before),
        macs_after=_count_macs(after),
        error_float32=errors[0],
        noise_float32=errors[1],
        reason=errors[2],
    )
    return Certificate(fused, skipped, model)


def _measure(original: ExportedProgram, before: Draft, after: Draft) -> tuple[float, float]:
    """Error of the merged program and noise of the original, of the worst output."""
    if original.example_inputs is None:
        raise ValueError("the program holds no example input")
    given, _ = pytree.tree_flatten(original.example_inputs)
    exact = _run(before, given, torch.float64)
    error = _distance(_run(after, given, None), exact)
    noise = _distance(_run(before, given, None), exact)
    return error, noise


def _run(draft: Draft, given: list[Any], dtype: torch.dtype | None) -> list[Tensor]:
    """The floating outputs of a program on its inputs."""
    names = [node for node in draft.graph.nodes if node.op == "placeholder"]
    passed = [node for node in names if draft.kind(node) is InputKind.USER_INPUT]
    known: dict[fx.Node, Any] = {
        node: cast(value.clone(), dtype) if isinstance(value, Tensor) else value
        for node, value in zip(passed, given, strict=True)
    }
    (output,) = (node for node in draft.graph.nodes if node.op == "output")
    if any(node.op == "get_attr" for node in draft.graph.nodes):
        raise ValueError("the graph has graphs of its own inside")
    calls = [node for node in draft.graph.nodes if node.op == "call_function"]
    with torch.no_grad():
        values = evaluate(draft, calls, known, dtype=dtype, keep=output.all_input_nodes)
    found = [_load(draft, values, node) for node in output.all_input_nodes]
    return [value for value in found if isinstance(value, Tensor) and value.is_floating_point()]


def _load(draft: Draft, values: Mapping[fx.Node, Any], node: fx.Node) -> Any:
    return values[node] if node in values else draft.stored(node)


def _distance(found: list[Tensor], exact: list[Tensor]) -> float:
    """Over the finite values; a NaN would be lost in the largest difference.

    Raises:
        ValueError: NaN or Inf stand in other places.
    """
    worst = 0.0
    for found_one, exact_one in zip(found, exact, strict=True):
        value, true = (one.detach().double() for one in (found_one, exact_one))
        finite = true.isfinite()
        same = (value == true) | (value.isnan() & true.isnan())
        if not torch.where(finite, value.isfinite(), same).all():
            raise ValueError("NaN or Inf stand in other places than in float64")
        if finite.any():
            scale = true[finite].abs().max().clamp_min(torch.finfo(torch.float64).tiny)
            worst = max(worst, float((value - true)[finite].abs().max() / scale))
    return worst


def _count_layers(draft: Draft) -> int:
    return sum(is_layer(node) for node in draft.graph.nodes)


def _count_macs(draft: Draft) -> int:
    return sum(count_macs(node) for node in draft.graph.nodes if node.op == "call_function")


def _count_parameters(program: ExportedProgram) -> int:
    tensors = {id(t): t for t in program.state_dict.values() if isinstance(t, Tensor)}
    return sum(t.numel() for t in tensors.values() if t.is_floating_point())
