"""`deploy fuse` and `deploy inspect`: the captured graph of a model file, merged, and looked at."""

import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.export import ExportedProgram

from deploy.config import BuildConfig
from deploy.source import Problem, open_problem
from deploy.torch_files import open_for_torch
from export.capture.dynamic_axes import FixedBatchError
from export.capture.inspection import LayerRow, list_layers
from export.capture.ladder import RUNGS
from export.capture.program import capture, contain_noise
from export.capture.remedies import suggest_remedies
from export.errors import ConfigError, ExportError
from export.fusion import fuse_program
from export.fusion.certificate import Certificate
from export.fusion.options import FusionOptions
from export.fusion.paths import name_as_user

CERTIFICATE_SUFFIX = ".certificate.json"


@dataclass(frozen=True)
class FusedFile:
    """What `fuse_file` wrote.

    Attributes:
        path: the merged program, as ``torch.export.load`` reads it.
        certificate_path: its evidence as JSON.
        certificate: the same.
        dynamic_batch: it takes any batch size.
        warnings: of the model file, a sentence each.
    """

    path: Path
    certificate_path: Path
    certificate: Certificate
    dynamic_batch: bool
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class Inspection:
    """What a model is made of, what would become of it, and warnings of its file."""

    name: str
    layers: tuple[LayerRow, ...]
    certificate: Certificate
    warnings: tuple[str, ...]


def fuse_file(model: Path, config: BuildConfig, output: Path) -> FusedFile:
    """Merge the model in `model` and write the program and its certificate.

    Args:
        model: in any form but TorchScript.
        config: the inputs, the trust, ``merge_always``.
        output: ends in ``.pt2``. The certificate goes beside it. Both are written whole or not at
            all.

    Raises:
        InputError: the model, the options or the data cannot be used, or `output` not be written.
        ExportError: torch.export cannot capture the model.
    """
    if output.suffix != ".pt2":
        raise ConfigError(f"-o {output}: the merged model is an exported program; name it .pt2.")
    if not output.parent.is_dir():
        raise ConfigError(f"-o {output}: there is no folder {output.parent}. Make it first.")
    program, problem, dynamic = _capture(model, config, ranged=True)
    fused = fuse_program(program, FusionOptions(merge_always=config.merge_always))
    try:
        _write(fused.program, fused.certificate, output)
    except OSError as error:
        raise ConfigError(
            f"-o {output} cannot be written: {error.strerror or error}. Choose another."
        ) from error
    certificate_path = output.with_suffix(CERTIFICATE_SUFFIX)
    return FusedFile(output, certificate_path, fused.certificate, dynamic, problem.warnings)


def _write(program: ExportedProgram, certificate: Certificate, output: Path) -> None:
    """Both files, beside `output` first, so that a failure leaves nothing of them."""
    with tempfile.TemporaryDirectory(prefix=".deploy-", dir=output.parent) as folder:
        staged = Path(folder) / output.name
        with contain_noise(), open_for_torch(staged) as file:
            torch.export.save(program, file)
        evidence = staged.with_suffix(CERTIFICATE_SUFFIX)
        content = json.dumps(certificate.as_dict(), indent=1, allow_nan=False)
        evidence.write_text(content + "\n", encoding="utf-8")
        os.replace(evidence, output.with_suffix(CERTIFICATE_SUFFIX))
        os.replace(staged, output)


def inspect_file(model: Path, config: BuildConfig) -> Inspection:
    """The layers of the model in `model`, and what `fuse_file` would merge; nothing is written.

    Raises:
        InputError: the model, the options or the data cannot be used.
        ExportError: torch.export cannot capture the model.
    """
    program, problem, _ = _capture(model, config, ranged=False)
    fused = fuse_program(program, FusionOptions(merge_always=config.merge_always))
    return Inspection(problem.name, list_layers(program), fused.certificate, problem.warnings)


def _capture(
    model: Path, config: BuildConfig, *, ranged: bool
) -> tuple[ExportedProgram, Problem, bool]:
    """The captured program, with a dynamic batch where the model allows it.

    With `ranged`, other axes are as dynamic as ``--input`` says, or this fails; else at their best.
    """
    with tempfile.TemporaryDirectory(prefix="deploy-") as scratch:
        problem = open_problem(model, config, Path(scratch))
    if problem.form == "torchscript":
        raise ConfigError(
            f"{model} is TorchScript, whose layers can be neither listed nor merged. Give the "
            "module that it was made from, or build it as it is with deploy build."
        )
    if problem.program is not None:
        return problem.program, problem, problem.static_batch is None
    refusals: list[ExportError] = []
    for rung in RUNGS:
        if rung.torchscript or (rung.dynamic_batch and problem.static_batch is not None):
            continue
        if not rung.dynamic_batch and problem.static_batch is None:
            places = (e.place for e in refusals if isinstance(e, FixedBatchError) and e.place)
            problem = problem.with_static_batch(next(places, ""))
        try:
            program = capture(
                problem.module,
                problem.trace_feeds(),
                keyword=problem.signature.keyword,
                dynamic_batch=rung.dynamic_batch,
                strict=rung.strict,
                inputs=problem.signature.inputs if ranged else (),
            )
            return _name_as_user(program, problem), problem, rung.dynamic_batch
        except ExportError as error:
            refusals.append(error)
    remedy = suggest_remedies(problem.module, " ".join(map(str, refusals))).rstrip()
    last = refusals[-1]
    raise ExportError(f"{last}{f' {remedy}' if remedy else ''}", last.place) from last


def _name_as_user(program: ExportedProgram, problem: Problem) -> ExportedProgram:
    return program if problem.images is None else name_as_user(program)
