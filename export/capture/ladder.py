"""Capture, fuse, export and check; and where one way fails, the next one.

Every rung ends with the same proof: ONNX Runtime repeats what the eager module computes, at several
batch sizes. Exports that succeed and compute something else are known (pytorch#169178), so a rung
that fails this proof has failed.
"""

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from export.artifacts import Fused, OnnxModel, Skip
from export.capture.agreement import (
    Expectation,
    Extent,
    expect,
    find_disagreement,
    measure_tolerances,
    run_onnx,
)
from export.capture.amplification import allow_amplified
from export.capture.decided_sizes import DecidedSizes
from export.capture.dynamic_axes import FixedBatchError, RefusedAxesError
from export.capture.image_model import ImageModel, find_user_module
from export.capture.program import capture
from export.capture.randomness import refuse_random
from export.capture.remedies import suggest_remedies
from export.capture.signature import CallSignature
from export.errors import ExportError, InputError
from export.fusion import DEFAULTS, FusedProgram, fuse_program
from export.fusion.certificate import WholeModel
from export.fusion.options import FusionOptions
from export.fusion.paths import name_as_user
from export.onnx.exporter import to_onnx, torchscript_to_onnx
from export.progress import Progress, ProgressCallback, ignore_progress
from export.ranges import describe_sizes, find_stray_sizes, probe_sizes, take_ranges


@dataclass(frozen=True)
class Rung:
    """One way to an ONNX file."""

    name: str
    torchscript: bool = False
    strict: bool = False
    dynamic_batch: bool = True


RUNGS: tuple[Rung, ...] = (
    Rung("dynamo"),
    Rung("dynamo-strict", strict=True),
    Rung("dynamo-static", dynamic_batch=False),
    Rung("torchscript", torchscript=True),
    Rung("torchscript-static", torchscript=True, dynamic_batch=False),
)
"""Tried from the first to the last."""

BATCHES = (1, 2, 3)
"""One, the traced size, and an odd one."""


@dataclass(frozen=True)
class Attempt:
    """A rung that failed.

    Attributes:
        error: why, in one line.
        place: where in the user's model, if that is known.
        batch: it failed because it was to take batches of other sizes.
    """

    rung: str
    error: str
    place: str = ""
    batch: bool = False


@dataclass(frozen=True)
class Exported:
    """A checked ONNX model and how it came about.

    Attributes:
        onnx: the file.
        rung: name of the rung that held.
        dynamic_batch: any batch size runs; otherwise only the captured one.
        attempts: the rungs before it, which failed.
        fused: rewrites done on the way.
        skipped: rewrites left, with reasons.
        fusion: all rewrites together; None if TorchScript made the file.
        program: the fused program; None if TorchScript made the file.
    """

    onnx: OnnxModel
    rung: str
    dynamic_batch: bool
    attempts: tuple[Attempt, ...]
    fused: tuple[Fused, ...]
    skipped: tuple[Skip, ...]
    fusion: WholeModel | None
    program: ExportedProgram | None


@dataclass(frozen=True)
class _Request:
    module: nn.Module
    feeds: Mapping[str, Tensor]
    path: Path
    signature: CallSignature
    opset: int
    fusion: FusionOptions
    probes: tuple[dict[str, int], ...] = ()


def export_model(
    module: nn.Module,
    feeds: Mapping[str, Tensor],
    workdir: Path,
    *,
    signature: CallSignature,
    static_batch: bool,
    opset: int,
    program: ExportedProgram | None = None,
    fusion: FusionOptions = DEFAULTS,
    progress: ProgressCallback = ignore_progress,
) -> Exported:
    """Bring `module` to ``workdir/model.onnx`` on the first of `RUNGS` whose result is right.

    Args:
        module: in eval mode; left as it is.
        feeds: example inputs by name; a batch of at least 2 where it is to be dynamic.
        workdir: where ``model.onnx`` (and ``model.onnx.data`` above 2 GB) goes.
        signature: names and dynamic axes of the call.
        static_batch: keep the batch size of `feeds`.
        opset: of the ONNX file.
        program: a capture of `module` that exists already (``.pt2``); the first rung uses it.
        fusion: what the user says about the rewrites.
        progress: told of each rung.

    Raises:
        ExportError: every rung failed; the message has one line for each.
        InputError: the module itself fails at sizes that `signature` lets in, or is random.
    """
    request = _Request(module, feeds, workdir / "model.onnx", signature, opset, fusion)
    dynamic = not static_batch and any(spec.has_dynamic_batch for spec in signature.inputs)
    rungs = [rung for rung in RUNGS if dynamic or not rung.dynamic_batch]
    if isinstance(find_user_module(module), torch.jit.ScriptModule):
        rungs = [rung for rung in rungs if rung.torchscript]
    expectations: dict[Extent, Expectation] = {}
    attempts: list[Attempt] = []
    for index, rung in enumerate(rungs):
        progress(Progress("export", index, len(rungs), rung.name))
        try:
            decided = DecidedSizes(module, feeds)
            given = program if index == 0 else None
            exported = _climb(request, rung, tuple(attempts), given, decided)
            _check(request, exported, expectations, decided)
        except ExportError as error:
            reason = " ".join(str(error).split())
            of_batch = isinstance(error, FixedBatchError)
            attempts.append(Attempt(rung.name, reason, error.place, of_batch))
            if isinstance(error, RefusedAxesError):
                request = _try_stray_sizes(request, error)
            continue
        progress(Progress("export", len(rungs), len(rungs), rung.name))
        return exported
    if not expectations:
        with contextlib.suppress(ExportError):  # the module itself fails, as the attempts say
            traced = _list_extents(request, dynamic=False)[0]
            first = _expect(request, traced, expectations)
            refuse_random(module, signature, first)
    reasons = "\n".join(f"  {attempt.rung}: {attempt.error}" for attempt in attempts)
    ranged = any(spec.ranges for spec in signature.inputs)
    # of one batch size, --static-batch, nothing is to be hoped: the static rungs failed as well
    fixed = ", or give one size to each axis that has a range in --input" if ranged else ""
    raise ExportError(
        "The model could not be exported; each way failed for its own reason. "
        f"{suggest_remedies(module, reasons)}Change the part of the model that is named{fixed}:\n"
        f"{reasons}"
    )


def _climb(
    request: _Request,
    rung: Rung,
    attempts: tuple[Attempt, ...],
    program: ExportedProgram | None,
    decided: DecidedSizes,
) -> Exported:
    """One rung: capture, fuse, ONNX; not checked yet."""
    inputs = [spec.name for spec in request.signature.inputs]
    outputs = [spec.name for spec in request.signature.outputs]
    keyword = request.signature.keyword
    if rung.torchscript:
        model = torchscript_to_onnx(
            request.module,
            request.feeds,
            request.path,
            input_names=inputs,
            output_names=outputs,
            keyword=keyword,
            dynamic_batch=rung.dynamic_batch,
            opset=request.opset,
            axes=request.signature.axis_names,
        )
        model = replace(model, inputs=take_ranges(model.inputs, request.signature.inputs))
        skip = Skip("(model)", "fusion", _explain_unfused(request.module))
        return Exported(model, rung.name, rung.dynamic_batch, attempts, (), (skip,), None, None)
    if program is None:
        program = capture(
            request.module,
            request.feeds,
            keyword=keyword,
            dynamic_batch=rung.dynamic_batch,
            strict=rung.strict,
            inputs=request.signature.inputs,
            decided=decided,
        )
    if isinstance(request.module, ImageModel):
        program = name_as_user(program)
    result: FusedProgram = fuse_program(program, request.fusion)
    model = to_onnx(
        result.program,
        request.path,
        input_names=inputs,
        output_names=outputs,
        opset=request.opset,
        axes=request.signature.axis_names,
    )
    model = replace(model, inputs=take_ranges(model.inputs, request.signature.inputs))
    dynamic = any(spec.has_dynamic_batch for spec in model.inputs)
    return Exported(
        onnx=model,
        rung=rung.name,
        dynamic_batch=dynamic,
        attempts=attempts,
        fused=result.fused,
        skipped=result.skipped,
        fusion=result.certificate.model,
        program=result.program,
    )


def _check(
    request: _Request,
    exported: Exported,
    known: dict[Extent, Expectation],
    decided: DecidedSizes,
) -> None:
    """Compare the file with the eager module at every batch size that it claims to take.

    Other dynamic axes have their best size there, and are tried at the ends of their ranges and
    between them.

    Raises:
        ExportError: it computes something else, or does not run.
        FixedBatchError: it does so since the model's code goes another way at another batch.
        InputError: so does the module itself, on another run of the same batch.
    """
    extents = _list_extents(request, exported.dynamic_batch)
    for extent in extents:
        expected = _expect(request, extent, known)
        try:
            found = run_onnx(exported.onnx, expected.feeds)
        except ExportError as error:
            raise _blame(str(error), expected, request, decided) from error.__cause__
        if find_disagreement(expected, found):
            refuse_random(request.module, request.signature, expected)
            known[extent] = allow_amplified(request.module, request.signature, expected)
            if disagreement := find_disagreement(known[extent], found):
                text = f"The exported model is wrong: {disagreement}"
                raise _blame(text, expected, request, decided)


def _blame(
    text: str, expected: Expectation, request: _Request, decided: DecidedSizes
) -> ExportError:
    """`text`, and the place where the code goes another way at these sizes than at the traced ones.

    A `FixedBatchError` where the size of the batch makes the difference.
    """
    place = decided.find_other_way({name: v.shape for name, v in expected.feeds.items()})
    if not place:
        return ExportError(text)
    kind = ExportError if expected.extent.batch == _read_batch(request) else FixedBatchError
    return kind(f"{text}. The model's code{place} goes another way there.", place)


def _read_batch(request: _Request) -> int:
    """Of the example inputs."""
    return next((int(value.shape[0]) for value in request.feeds.values() if value.ndim), 1)


def _expect(request: _Request, extent: Extent, known: dict[Extent, Expectation]) -> Expectation:
    """What the eager module returns, run once for each extent."""
    call = request.module, request.feeds, request.signature
    if extent not in known:
        tolerances = (
            next(iter(known.values())).tolerances
            if known
            else measure_tolerances(*call, extent.batch)
        )
        expected = expect(*call, extent=extent, tolerances=tolerances)
        given = _read_batch(request)
        if extent.batch < given:  # a lone sample may be one number, whose range is none
            all_given = expect(*call, extent=replace(extent, batch=given), tolerances=tolerances)
            expected = replace(expected, spans=all_given.measure_spans())
        known[extent] = expected
    return known[extent]


def _try_stray_sizes(request: _Request, refused: RefusedAxesError) -> _Request:
    """Run the module itself at sizes that torch.export refused, and hold later files to it there.

    Other rungs trace one way through the code and would not notice that it leads nowhere there.

    Raises:
        InputError: the module fails there, so the range is wrong.
    """
    stray = find_stray_sizes(request.signature.inputs, refused.multiples)
    if not stray or stray in request.probes:
        return request
    call = request.module, request.feeds, request.signature
    batch = _list_extents(request, dynamic=False)[0].batch
    extent = Extent(batch, tuple(stray.items()))
    try:
        expect(*call, extent=extent, tolerances={})
    except ExportError as error:
        raise InputError(f"{refused} The model itself fails at {describe_sizes(stray)}.") from error
    return replace(request, probes=(*request.probes, stray))


def _list_extents(request: _Request, dynamic: bool) -> list[Extent]:
    batches = BATCHES if dynamic else (_read_batch(request),)
    probes = (*probe_sizes(request.signature.inputs), *request.probes)
    traced = batches[min(1, len(batches) - 1)]
    return [
        *(Extent(batch) for batch in batches),
        *(Extent(traced, tuple(probe.items())) for probe in probes),
    ]


def _explain_unfused(module: nn.Module) -> str:
    if isinstance(find_user_module(module), torch.jit.ScriptModule):
        return "TorchScript models are exported as they are"
    return "the TorchScript exporter takes the model as it is; no captured graph to rewrite"
