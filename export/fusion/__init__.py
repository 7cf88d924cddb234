"""Rewrites of the captured graph that keep its function and cost less."""

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram

from export.artifacts import Fused, Skip
from export.capture.copying import deep_copy
from export.capture.program import capture
from export.errors import ExportError
from export.fusion.branches import merge_branches
from export.fusion.certificate import Certificate, certify, find_doubt
from export.fusion.conv_bn import fold_conv_bn
from export.fusion.draft import Draft
from export.fusion.options import FusionOptions
from export.fusion.scales import hoist_scales
from export.fusion.sink_norms import sink_norms
from export.fusion.split_norms import split_norms

Pass = Callable[[Draft, FusionOptions], tuple[tuple[Fused, ...], tuple[Skip, ...]]]

PASSES: tuple[Pass, ...] = (
    hoist_scales,
    sink_norms,
    merge_branches,
    split_norms,
    fold_conv_bn,
)
"""The rewrites, run from the first to the last."""


DEFAULTS = FusionOptions()


@dataclass(frozen=True)
class FusedProgram:
    """A program with its rewrites done, and the evidence."""

    program: ExportedProgram
    certificate: Certificate

    @property
    def fused(self) -> tuple[Fused, ...]:
        """What became what."""
        return self.certificate.fused

    @property
    def skipped(self) -> tuple[Skip, ...]:
        """What was left, and why."""
        return self.certificate.skipped


@dataclass(frozen=True)
class FusionResult:
    """A fused model.

    Attributes:
        module: runs, passes gradients, exports and deep-copies on its own. It shares no tensor
            with the caller's model, and the merged ones with `program`.
            ``train()`` and ``eval()`` set the flag only: the graph keeps what the model did in the
            mode it was captured in, and a folded batch norm stays folded.
        program: the same graph, as the ONNX export takes it. It shares the caller's tensors
            where nothing was merged.
        certificate: what became what, what was left and why, and the proof.
    """

    module: fx.GraphModule
    program: ExportedProgram
    certificate: Certificate

    @property
    def fused(self) -> tuple[Fused, ...]:
        """What became what, with its proof."""
        return self.certificate.fused

    @property
    def skipped(self) -> tuple[Skip, ...]:
        """What was left, and why."""
        return self.certificate.skipped


def fuse_program(program: ExportedProgram, options: FusionOptions = DEFAULTS) -> FusedProgram:
    """Run `PASSES` on a copy of `program`.

    Where the whole is wrong though each rewrite was proved, nothing is done, and `skipped` says so.

    Raises:
        ExportError: the rewritten program does not verify.
    """
    draft = Draft(program)
    fused: list[Fused] = []
    skipped: list[Skip] = []
    for rewrite in PASSES:
        done, left = rewrite(draft, options)
        fused += done
        told = {path for skip in skipped for path in skip.where.split(", ")}
        skipped += [skip for skip in left if skip.where not in told]
    try:
        finished = draft.finish()
    except (RuntimeError, AssertionError, torch._export.verifier.SpecViolationError) as error:
        raise ExportError(f"The fused graph does not verify: {error}") from error
    certificate = certify(program, finished, tuple(fused), tuple(skipped))
    doubt = find_doubt(program, finished, certificate.model) if fused else None
    if doubt is None:
        return FusedProgram(finished, certificate)
    same = Draft(program).finish()
    undone = Skip("the whole model", "all of its merges", doubt)
    return FusedProgram(same, certify(program, same, (), (undone, *skipped)))


def fuse(
    model: nn.Module,
    inputs: Tensor | tuple[Tensor, ...] | Mapping[str, Tensor],
    *,
    merge_always: bool = False,
) -> FusionResult:
    """Capture `model` and merge what can be merged; the model itself is not changed.

    The batch axis is dynamic where the model allows it; else the result keeps the given sizes.

    Args:
        model: in eval mode, as a rule: a batch norm in training mode is left alone.
        inputs: one example tensor, the positional arguments, or the keyword arguments.
        merge_always: merge whatever is exact, even where that takes more multiplications.

    Raises:
        ExportError: torch.export cannot capture the model, or a tensor of it has no values.
    """
    _check_values(model)
    if isinstance(inputs, Tensor):
        inputs = (inputs,)
    keyword = isinstance(inputs, Mapping)
    feeds = (
        dict(inputs)
        if isinstance(inputs, Mapping)
        else {f"input_{index}": value for index, value in enumerate(inputs)}
    )
    try:
        program = capture(model, _widen_batch(feeds), keyword=keyword, dynamic_batch=True)
    except ExportError:
        program = capture(model, feeds, keyword=keyword, dynamic_batch=False)
    result = fuse_program(program, FusionOptions(merge_always=merge_always))
    given = {id(tensor) for tensor in program.state_dict.values()}
    made = [t for t in result.program.state_dict.values() if id(t) not in given]
    return FusionResult(_make_module(result.program, made), result.program, result.certificate)


def _check_values(model: nn.Module) -> None:
    tensors = itertools.chain(model.named_parameters(), model.named_buffers())
    name = next((name for name, tensor in tensors if tensor.is_meta), None)
    if name is not None:
        raise ExportError(
            f"{name} lies on the meta device and has no values to merge; give the model memory by "
            "to_empty(device='cpu') and load its weights first"
        )


def _widen_batch(feeds: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`feeds` with a batch of two where it is one: size 1 would be captured as a constant."""
    if any(value.ndim and value.shape[0] != 1 for value in feeds.values()):
        return dict(feeds)
    return {name: torch.cat([v, v]) if v.ndim else v for name, v in feeds.items()}


def _make_module(program: ExportedProgram, made: list[Tensor]) -> fx.GraphModule:
    """A plain module of `program`; it shares the tensors in `made` with it and no others.

    ``program.module()`` refuses ``train()`` and carries guards; a GraphModule made anew of its
    graph does neither.
    """
    unlifted = program.module(check_guards=False)
    module = deep_copy(fx.GraphModule(unlifted, unlifted.graph), shared=made)
    module.graph._tracer_cls = fx.Tracer  # that of torch.export cannot be made anew by pickle
    module._tracer_cls = fx.Tracer
    module.eval()
    return module
