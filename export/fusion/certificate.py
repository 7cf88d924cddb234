"""What was merged, what was left, and how far the whole model is from what it was.

Every block carries its own proof (`trial`). The whole model is held against itself once more:
original and merged program on the example input of the capture, beside the original in float64.
What no block shows, such as memory that two of them share, shows there.
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

NOISE_FACTOR, FLOOR = 10.0, 1e-4
"""A merged model may lose so many times what eager itself loses, or so much, whichever is more: as
an export may (`export.capture.agreement`)."""

_NUDGE = 0.05
"""Of the spread of an input, for a second look."""


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
        errors = (*_compare(before, after, _list_inputs(original)), None)
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


def find_doubt(original: ExportedProgram, merged: ExportedProgram, model: WholeModel) -> str | None:
    """Why the merged program is not to be trusted, in words; None where nothing speaks against it.

    A step that jumps may take another side for a rounding. So the error must be there on an input
    a little beside the example as well.
    """
    if model.error_float32 is None or model.noise_float32 is None:
        return None
    if _is_rounding(model.error_float32, model.noise_float32):
        return None
    generator = torch.Generator().manual_seed(0)
    given = [_nudge(value, generator) for value in _list_inputs(original)]
    try:
        if _is_rounding(*_compare(Draft(original), Draft(merged), given)):
            return None
    except ValueError:  # NaN or Inf in other places: no rounding either
        pass
    return (
        f"merged, the outputs are off by {model.error_float32:.2e} of the largest value, where the "
        f"original loses {model.noise_float32:.2e} by itself; each block for itself is exact"
    )


def _is_rounding(error: float, noise: float) -> bool:
    return error <= max(NOISE_FACTOR * noise, FLOOR)


def _nudge(value: Any, generator: torch.Generator) -> Any:
    if not isinstance(value, Tensor) or not value.is_floating_point() or not value.numel():
        return value
    spread = float(value.double().std(correction=0)) or 1.0
    nudge = torch.randn(value.shape, dtype=torch.float64, generator=generator)
    return value + (_NUDGE * spread * nudge).to(value.device, value.dtype)


def _list_inputs(program: ExportedProgram) -> list[Any]:
    if program.example_inputs is None:
        raise ValueError("the program holds no example input")
    return list(pytree.tree_flatten(program.example_inputs)[0])


def _compare(before: Draft, after: Draft, given: list[Any]) -> tuple[float, float]:
    """Error of the merged program and noise of the original, of the worst output."""
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
