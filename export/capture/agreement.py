"""Whether an exported file computes what the eager module computes.

The reference is the eager module, and the tolerance is ten times what it loses itself in float32
against float64. Where it does not run in float64, or lands too far from float32 for this to be
rounding (a discontinuity was crossed), a fixed tolerance stands in.

Exporters bake batch sizes in, so one comparison is made per batch size, with samples that differ
from each other: a swapped pair must show.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn

from export.artifacts import OnnxModel
from export.capture.arrays import to_array
from export.capture.float64 import copy_in_float64, run_in_float64
from export.capture.signature import CallSignature
from export.errors import ExportError
from export.masks import open_masks
from export.onnx.missing_kernels import name_refused_formats

Array = np.ndarray[Any, Any]

NOISE_FACTOR = 10.0
FLOOR = 1e-4
"""Finds wrong exports, not rounding: engines are held to eager's own noise later, far below."""
WITHOUT_FLOAT64 = 1e-4
LARGEST_NOISE = 1e-4
"""Above this, eager's distance from float64 is no rounding, and float64 no oracle."""


@dataclass(frozen=True)
class Extent:
    """How large inputs are: samples, and sizes of dynamic axes by name; others have their best."""

    batch: int
    sizes: tuple[tuple[str, int], ...] = ()

    def __str__(self) -> str:
        return f"batch {self.batch}" + "".join(f", {name}={size}" for name, size in self.sizes)


@dataclass(frozen=True)
class Expectation:
    """What a faithful export returns for one batch.

    Attributes:
        extent: of that batch.
        feeds: inputs by name.
        outputs: eager results by name; floats are widened to float64.
        tolerances: largest relative error by name, as `measure_error` measures it.
        samples: the same of each sample by itself, where `amplification` measured it; of one that
            proves nothing the largest number, so that it must be finite alone.
        spans: ranges by name over other samples, where those of one batch alone tell little: one
            probability is a single number, whose own range is none.
        losses: by name what the module itself loses in float32 against float64, where
            `amplification` measured it.
    """

    extent: Extent
    feeds: Mapping[str, Array]
    outputs: Mapping[str, Array]
    tolerances: Mapping[str, float]
    samples: Mapping[str, Array] = field(default_factory=dict)
    spans: Mapping[str, float] = field(default_factory=dict)
    losses: Mapping[str, float] = field(default_factory=dict)

    def measure_spans(self) -> dict[str, float]:
        """The range of each output of finite floats; 0 of others."""
        found = {}
        for name, values in self.outputs.items():
            plain = values.dtype.kind == "f" and values.size and bool(np.isfinite(values).all())
            found[name] = float(np.ptp(values)) if plain else 0.0
        return found


def measure_tolerances(
    module: nn.Module, feeds: Mapping[str, Tensor], signature: CallSignature, batch: int
) -> dict[str, float]:
    """How far an export of `module` may be from it, per output, relative to the output's range.

    Ten times what the module itself loses in float32 against float64, measured on one batch; at
    least ten steps of the coarsest format that its weights or the output have.

    Raises:
        ExportError: the module itself fails at this batch size.
    """
    chosen = resize_feeds(feeds, signature, Extent(batch))
    eager, wide = run_eager(module, signature, chosen), run_float64(module, signature, chosen)
    inside = max((torch.finfo(dtype).eps for dtype in float_dtypes(module)), default=0.0)
    tolerances = {}
    for index, spec in enumerate(signature.outputs):
        if not (eager[index].is_floating_point() or eager[index].is_complex()):
            tolerances[spec.name] = 0.0
            continue
        step = NOISE_FACTOR * max(torch.finfo(eager[index].dtype).eps, inside)
        tolerance = max(WITHOUT_FLOAT64, step)
        if wide is not None:
            noise = measure_error(widen(wide[index]), widen(eager[index]))
            if noise <= max(LARGEST_NOISE, step):
                tolerance = max(NOISE_FACTOR * noise, FLOOR, step)
        tolerances[spec.name] = tolerance
    return tolerances


def expect(
    module: nn.Module,
    feeds: Mapping[str, Tensor],
    signature: CallSignature,
    *,
    extent: Extent,
    tolerances: Mapping[str, float],
) -> Expectation:
    """Run `module` on samples of `extent` made of `feeds` and say what an export must return.

    Raises:
        ExportError: the module itself fails at this batch size.
    """
    chosen = resize_feeds(feeds, signature, extent)
    results = run_eager(module, signature, chosen)
    names = (spec.name for spec in signature.outputs)
    return Expectation(
        extent=extent,
        feeds={name: to_array(value.cpu()) for name, value in chosen.items()},
        outputs={name: widen(v) for name, v in zip(names, results, strict=True)},
        tolerances=tolerances,
    )


def find_disagreement(expected: Expectation, outputs: Mapping[str, Array]) -> str | None:
    """The first way in which `outputs` are not what was expected, in words; None if they are."""
    for name, reference in expected.outputs.items():
        where = f"output {name!r} at {expected.extent}"
        if name not in outputs:
            return f"{where} is missing"
        found = outputs[name]
        if reference.dtype.kind == "c" and found.dtype.kind != "c":
            return f"{where} is complex in eager, and real in the file"
        if found.shape != reference.shape:
            return f"{where} has shape {found.shape}, eager {reference.shape}"
        errors, allowed = _measure_by_tolerance(expected, name, found)
        for error, most in zip(errors, allowed, strict=True):
            if not error <= most:
                if reference.dtype.kind not in "fc":
                    return f"{where} has other integers in {error:.1%} of its places"
                if error == float("inf"):
                    return f"{where} has NaN or infinity in other places than eager"
                loss = expected.losses.get(name, 0.0)
                own = f", but the model itself loses {loss:.2e} in float32" if loss > most else ""
                return (
                    f"{where} is off by {error:.2e} of its range; at most {most:.2e} is rounding"
                    f"{own}"
                )
    return None


def _measure_by_tolerance(
    expected: Expectation, name: str, found: Array
) -> tuple[Sequence[float], Sequence[float]]:
    """Errors, and what is allowed of each: of all samples together, or of one by one."""
    reference = expected.outputs[name]
    if name in expected.samples:
        return measure_sample_errors(reference, found), expected.samples[name].tolist()
    span = expected.spans.get(name, 0.0)
    return [measure_error(reference, found, span)], [expected.tolerances[name]]


def measure_sample_errors(reference: Array, found: Array) -> list[float]:
    """`measure_error` of each sample of floats, all over the range of the whole `reference`.

    A single number of the whole batch is one sample.
    """
    if not reference.ndim:
        return [measure_error(reference, found)]
    if reference.shape != found.shape:
        return [float("inf")] * len(reference)
    opened = open_masks(reference.astype(np.float64), found.astype(np.float64))
    scale = _measure_scale(opened[0])
    return [_measure_difference(ours, theirs) / scale for ours, theirs in zip(*opened, strict=True)]


def measure_error(reference: Array, found: Array, span: float = 0.0) -> float:
    """Largest difference over the range of `reference`; for integers, the share that differs.

    The range counts at least as 1% of the largest value, so that near-constant outputs are not
    asked for more digits than float32 has, and as `span`, that of other samples. A single number
    of a whole batch, such as a loss, has no other beside it, and its value stands for its range.
    Infinite if NaN or Inf stand in different places, or the shapes differ.
    """
    if reference.shape != found.shape:
        return float("inf")
    if reference.size == 0:
        return 0.0
    if reference.dtype.kind not in "fc":
        return float(np.mean(reference != found))
    lone = not reference.ndim
    if reference.dtype.kind == "c":
        reference, found = (np.stack([v.real, v.imag], -1) for v in (reference, found))
    reference, found = open_masks(reference.astype(np.float64), found.astype(np.float64))
    return _measure_difference(reference, found) / _measure_scale(reference, span, lone=lone)


def _measure_difference(reference: Array, found: Array) -> float:
    """The largest; infinite if NaN or Inf stand in different places."""
    finite = np.isfinite(reference)
    if not np.array_equal(reference[~finite], found[~finite], equal_nan=True):
        return float("inf")
    reference, found = reference[finite], found[finite]
    if not np.isfinite(found).all():
        return float("inf")
    return float(np.abs(found - reference).max(initial=0.0))


def _measure_scale(reference: Array, span: float = 0.0, *, lone: bool = False) -> float:
    """What a difference is held against, see `measure_error`; 1 where all is 0."""
    finite = reference[np.isfinite(reference)]
    if not finite.size:
        return span or 1.0
    largest = float(np.abs(finite).max())
    least = largest if lone else 0.01 * largest
    return max(float(finite.max() - finite.min()), least, span) or 1.0


def run_onnx(model: OnnxModel, feeds: Mapping[str, Array]) -> dict[str, Array]:
    """Run the file once with ONNX Runtime on the CPU.

    Raises:
        ExportError: ONNX Runtime cannot load or run it.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    names = [spec.name for spec in model.outputs]
    try:
        session = onnxruntime.InferenceSession(
            str(model.path), options, providers=["CPUExecutionProvider"]
        )
        results = session.run(names, {spec.name: feeds[spec.name] for spec in model.inputs})
    except Exception as error:  # ONNX Runtime's exceptions share no base but this
        text = str(error).strip().splitlines()[0]
        formats = name_refused_formats(model.path, text)
        text += f" in {formats}" if formats else ""
        raise ExportError(f"ONNX Runtime cannot run the exported model: {text}") from error
    return dict(zip(names, results, strict=True))


def float_dtypes(module: nn.Module) -> set[torch.dtype]:
    """The floating-point formats of the weights of `module`; of its buffers where it has none."""
    held: list[Tensor] = [*module.parameters()] or [*module.buffers()]
    return {tensor.dtype for tensor in held if tensor.is_floating_point()}


def resize_feeds(
    feeds: Mapping[str, Tensor], signature: CallSignature, extent: Extent
) -> dict[str, Tensor]:
    """`feeds` in the sizes of `extent`.

    Samples beyond the given ones differ from these and hold only values that the model is known to
    take. Floats are rolled along their last axis. Integers stay in their column, since columns may
    be categories of which each has another number, and are taken from one given sample or another.
    Masks are rolled but for their first two values: a causal model's first answer is of nothing
    where these hide all that it may look at, and nothing is agreed on for that. Other axes are cut,
    or begin anew.
    """
    resized, sizes, batch = {}, dict(extent.sizes), extent.batch
    for spec in signature.inputs:
        value = feeds[spec.name]
        if spec.has_dynamic_batch and value.shape[0] != batch:
            samples, turn = value, 0
            while samples.shape[0] < batch:
                turn += 1
                samples = torch.cat([samples, _vary(value, turn)])
            value = samples[:batch]
        for axis, name in enumerate(spec.shape):
            if name in sizes:
                rows = torch.arange(sizes[str(name)]) % value.shape[axis]
                value = value.index_select(axis, rows)
        resized[spec.name] = value.contiguous()
    return resized


def _vary(value: Tensor, turn: int) -> Tensor:
    """Other samples made of those in `value`."""
    if value.ndim < 2:
        return value
    held = 2 if _may_be_mask(value) else 0
    if not held and not value.is_floating_point() and len(value) > 1:
        columns = torch.arange(value.shape[-1])
        rows = (torch.arange(len(value))[:, None] + columns // turn) % len(value)
        return torch.stack([value[rows[:, j], ..., j] for j in columns.tolist()], -1)
    return torch.cat([value[..., :held], value[..., held:].roll(turn, -1)], -1)


def _may_be_mask(value: Tensor) -> bool:
    return not value.is_floating_point() and bool((value.bool() == value).all())


def _run(
    module: nn.Module, signature: CallSignature, feeds: Mapping[str, Tensor]
) -> tuple[Tensor, ...]:
    own = {name: value.clone() for name, value in feeds.items()}  # a model may write to its inputs
    with torch.no_grad():
        outputs = signature.call(module, own)
    return tuple(tensor.clone() for tensor in outputs.values())


def run_eager(
    module: nn.Module, signature: CallSignature, feeds: Mapping[str, Tensor]
) -> tuple[Tensor, ...]:
    """The outputs of the module itself.

    Raises:
        ExportError: it fails.
    """
    try:
        return _run(module, signature, feeds)
    except Exception as error:  # the user's own code: whatever it raises is the finding
        shapes = ", ".join(f"{name} {tuple(value.shape)}" for name, value in feeds.items())
        raise ExportError(
            f"The model itself fails on {shapes}: {type(error).__name__}: {error}"
        ) from error


def run_float64(
    module: nn.Module, signature: CallSignature, feeds: Mapping[str, Tensor]
) -> tuple[Tensor, ...] | None:
    """The outputs of a float64 copy; None if the module does not run in float64."""
    wide = {name: v.double() if v.is_floating_point() else v for name, v in feeds.items()}
    try:
        copied = copy_in_float64(module)
        return run_in_float64(lambda: _run(copied, signature, wide))
    except (RuntimeError, TypeError, ValueError, AttributeError, AssertionError):
        return None


def widen(value: Tensor) -> Array:
    """A tensor as an array, floats in float64."""
    value = value.detach().cpu()
    return (value.double() if value.is_floating_point() else value).numpy()
